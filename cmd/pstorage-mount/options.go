package main

import (
	"os"
	"slices"
	"strings"

	"pstorage/cmd/cli"
	"pstorage/dataplane/fuse"
)

// fsOptions are the options of -o that mean something here.
type fsOptions struct {
	allowOther bool
	readOnly   bool
	fsName     string
	overRing   fuse.OverRing
}

// harmless are options of mount(8) that may stand in an fstab line and change nothing here.
var harmless = []string{"defaults", "_netdev", "auto", "noauto", "nofail", "user", "nouser",
	"users", "async", "atime", "noatime", "relatime", "nodiratime", "dev", "nodev", "exec", "suid",
	"nosuid"}

// ringChoices are the values of fuse-uring.
var ringChoices = map[string]fuse.OverRing{"auto": fuse.Auto, "on": fuse.On, "off": fuse.Off}

func parseOptions(list []string, clusterName string) (fsOptions, error) {
	o := fsOptions{allowOther: os.Geteuid() == 0, fsName: "pstorage://" + clusterName}
	for _, option := range list {
		name, value, _ := strings.Cut(strings.TrimSpace(option), "=")
		switch {
		case name == "" || slices.Contains(harmless, name) || strings.HasPrefix(name, "x-"):
		case name == "rw":
			o.readOnly = false
		case name == "allow_other":
			o.allowOther = true
		case name == "noallow_other":
			o.allowOther = false
		case name == "fsname" && value != "":
			o.fsName = value
		case name == "ro":
			o.readOnly = true
		case name == "fuse-uring" && value != "":
			choice, ok := ringChoices[value]
			if !ok {
				return o, cli.Usage("-o %s: it is auto, on or off", option)
			}
			o.overRing = choice
		default:
			return o, cli.Usage("-o %s: unknown option; see pstorage-mount --help", option)
		}
	}
	return o, nil
}
