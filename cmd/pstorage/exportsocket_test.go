package main

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// TestSocketAccess: a socket has the group and mode that were asked for, and otherwise stays as it
// was.
func TestSocketAccess(t *testing.T) {
	gid := os.Getgid()
	if os.Getuid() == 0 {
		gid++
	}
	for _, c := range []struct {
		mode, group string
		perm        os.FileMode
		gid         int
	}{
		{"", "", 0o600, os.Getgid()},
		{"0660", "", 0o660, os.Getgid()},
		{"", strconv.Itoa(gid), 0o600, gid},
		{"666", strconv.Itoa(gid), 0o666, gid},
	} {
		path := filepath.Join(t.TempDir(), "sock")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		a := socketAccess{mode: c.mode, group: c.group}
		err := a.check([]string{path})
		if err == nil {
			err = a.allow(path)
		}
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Stat(path, &st)
		}
		if err != nil || os.FileMode(st.Mode&0o777) != c.perm || int(st.Gid) != c.gid {
			t.Errorf("mode %q, group %q: mode %o, group %d, %v", c.mode, c.group, st.Mode, st.Gid, err)
		}
	}
}
