package main

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
)

// socketAccess is who may connect to a unix socket besides the user who listens on it.
type socketAccess struct {
	mode, group string
	perm        os.FileMode // 0: as it is
	gid         int         // -1: as it is
}

func (s *socketAccess) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.mode, "socket-mode", "", "octal `MODE` of the unix sockets (default 0600)")
	f.StringVar(&s.group, "socket-group", "", "`GROUP` that the unix sockets belong to")
}

// check looks at the flags, sockets being the paths.
func (s *socketAccess) check(sockets []string) error {
	s.gid = -1
	if s.mode == "" && s.group == "" {
		return nil
	}
	if len(sockets) == 0 {
		return cli.Usage("--socket-mode and --socket-group are for --socket")
	}
	for _, path := range sockets {
		if strings.HasPrefix(path, "@") {
			return cli.Usage("--socket %s: it isn't in the file system, and has no mode or group", path)
		}
	}
	if s.mode != "" {
		n, err := strconv.ParseUint(s.mode, 8, 32)
		if err != nil || n == 0 || n > 0o777 {
			return cli.Usage("--socket-mode %q: octal digits, as 0660", s.mode)
		}
		s.perm = os.FileMode(n)
	}
	if s.group == "" {
		return nil
	}
	if g, err := user.LookupGroup(s.group); err == nil {
		s.gid, err = strconv.Atoi(g.Gid)
		return err
	}
	n, err := strconv.ParseUint(s.group, 10, 31)
	if err != nil {
		return cli.Usage("--socket-group %q: there is no such group", s.group)
	}
	s.gid = int(n)
	return nil
}

// allow lets others connect to the socket at path, where only its owner could so far.
func (s *socketAccess) allow(path string) error {
	if s.gid >= 0 {
		if err := os.Chown(path, -1, s.gid); err != nil {
			return cli.Fail(fmt.Sprintf("give the socket to group %s", s.group), err,
				"run this as root or as a member of that group; a unit of systemd has Group=")
		}
	}
	if s.perm == 0 {
		return nil
	}
	if err := os.Chmod(path, s.perm); err != nil {
		return cli.Fail("set the mode of the socket", err, "")
	}
	return nil
}
