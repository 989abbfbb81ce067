package main

import (
	"path/filepath"
	"strings"

	"pstorage/cmd/cli"
)

// Under the name mount.fuse.pstorage this program is a helper of mount(8), for lines of fstab(5)
// such as
//
//	pstorage://CLUSTER /pcs fuse.pstorage _netdev 0 0
//
// mount(8) calls it as: mount.fuse.pstorage SOURCE MOUNTPOINT [-sfnvN] [-t TYPE] [-o OPTIONS].
const (
	helperName   = "mount.fuse.pstorage"
	sourcePrefix = "pstorage://"
	// logOption and metricsOption of -o stand for the flags, which a line of fstab can't have.
	logOption     = "log="
	metricsOption = "metrics="
	waitOption    = "wait="
	// bootWait is how long a line of fstab waits for the metadata servers unless it says otherwise:
	// after a power cut of the site others may start later, and nobody mounts a second time. It is
	// less than systemd waits for a mount (DefaultTimeoutStartSec=90s), so that one learns why.
	bootWait = "80s"
)

// isHelper says whether the program was called by mount(8)'s name for it.
func isHelper(program string) bool { return filepath.Base(program) == helperName }

// helperArgs turns a command line of mount(8) into one of pstorage-mount. fake: only the command
// line is to be checked (mount -f).
func helperArgs(args []string) (own []string, fake bool, err error) {
	var plain, options []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case len(arg) < 2 || arg[0] != '-':
			plain = append(plain, arg)
			continue
		case strings.HasPrefix(arg, "-o") || strings.HasPrefix(arg, "-t") ||
			strings.HasPrefix(arg, "-N"):
			value := arg[2:]
			if value == "" {
				if i++; i == len(args) {
					return nil, false, cli.Usage("%s needs a value", arg)
				}
				value = args[i]
			}
			switch {
			case arg[1] == 'o':
				options = append(options, strings.Split(value, ",")...)
			case arg[1] == 'N':
				return nil, false, cli.Usage("-N %s: other mount namespaces aren't supported; enter it "+
					"with nsenter --mount", value)
			}
			continue
		}
		for _, c := range arg[1:] {
			switch c {
			case 's', 'n', 'v', 'w': // tolerate, no mtab, verbose, read and write
			case 'r':
				options = append(options, "ro")
			case 'f':
				fake = true
			default:
				return nil, false, cli.Usage("-%c isn't an option that mount(8) gives its helpers", c)
			}
		}
	}
	if len(plain) != 2 {
		return nil, false, cli.Usage("called as mount(8) calls it: %s %sCLUSTER MOUNTPOINT [-o OPTIONS]",
			helperName, sourcePrefix)
	}
	name, ok := strings.CutPrefix(strings.TrimSuffix(plain[0], "/"), sourcePrefix)
	if !ok || name == "" || strings.Contains(name, "/") {
		return nil, false, cli.Usage("source %q: write it as %sCLUSTER", plain[0], sourcePrefix)
	}
	own = []string{"--cluster=" + name}
	wait := bootWait
	var rest []string
	for _, o := range options {
		if value, ok := strings.CutPrefix(o, logOption); ok {
			own = append(own, "--log="+value)
		} else if value, ok := strings.CutPrefix(o, metricsOption); ok {
			own = append(own, "--metrics="+value)
		} else if value, ok := strings.CutPrefix(o, waitOption); ok {
			wait = value
		} else if o != "" {
			rest = append(rest, o)
		}
	}
	if len(rest) > 0 {
		own = append(own, "--options="+strings.Join(rest, ","))
	}
	return append(own, "--wait="+wait, "--", plain[1]), fake, nil
}
