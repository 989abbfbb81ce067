package main

import (
	"slices"
	"strings"
	"testing"

	"pstorage/cmd/cli"
)

func TestHelperArgs(t *testing.T) {
	const source = "pstorage://c1"
	for _, c := range []struct {
		args string
		want string
		fake bool
	}{
		{source + " /pcs", "--cluster=c1 --wait=80s -- /pcs", false},
		{source + "/ /pcs -o rw,_netdev", "--cluster=c1 --options=rw,_netdev --wait=80s -- /pcs", false},
		{source + " /pcs -n -v -t fuse.pstorage -o rw",
			"--cluster=c1 --options=rw --wait=80s -- /pcs", false},
		{source + " /pcs -svn -oro,log=/l,metrics=127.0.0.1:9522",
			"--cluster=c1 --log=/l --metrics=127.0.0.1:9522 --options=ro --wait=80s -- /pcs", false},
		{"-r " + source + " -f -- /pcs", "", true},
		{source + " /pcs -r", "--cluster=c1 --options=ro --wait=80s -- /pcs", false},
		{source + " /pcs -o wait=5m,ro", "--cluster=c1 --options=ro --wait=5m -- /pcs", false},
		{source + " /pcs -f", "--cluster=c1 --wait=80s -- /pcs", true},
		{source, "", false}, {"c1 /pcs", "", false}, {"pstorage:// /pcs", "", false},
		{"pstorage://a/b /pcs", "", false}, {source + " /pcs -o", "", false},
		{source + " /pcs -z", "", false}, {source + " /pcs more", "", false},
		{source + " /pcs -N /proc/1/ns/mnt", "", false},
	} {
		got, fake, err := helperArgs(strings.Fields(c.args))
		if c.want == "" {
			if cli.Status(err) != cli.ExitUsage {
				t.Errorf("%s: %q, %v, want a usage error", c.args, got, err)
			}
			continue
		}
		if err != nil || fake != c.fake || !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: %q, %v, %v, want %q", c.args, got, fake, err, c.want)
		}
		// What comes out is what the program itself understands.
		root := newRoot()
		if err := root.ParseFlags(got); err != nil || root.Flags().Arg(0) != "/pcs" {
			t.Errorf("%s: %q isn't understood: %v", c.args, got, err)
		}
	}
	if !isHelper("/sbin/mount.fuse.pstorage") || isHelper("/usr/bin/pstorage-mount") {
		t.Error("the helper isn't known by its name")
	}
}
