package main

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
)

// attrPathHelp is what the help of commands with an attrPath says.
const attrPathHelp = `

PATH is a path on a mount of the cluster on this node; where there is none, and with -p, it is the
path inside the cluster.`

// attrPath finds out which path inside the cluster a command means.
type attrPath struct{ inside bool }

func (p *attrPath) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&p.inside, "cluster-path", "p", false, "PATH is a path inside the cluster")
}

// find returns the path inside the cluster, and names the cluster if the path does and nobody else
// has.
func (p *attrPath) find(a *app, path string) (string, error) {
	if p.inside {
		return path, nil
	}
	mounts, err := cli.Mounts()
	if err != nil {
		return "", err
	}
	return clusterPath(mounts, &a.cluster, path)
}

// onMount returns the innermost of the mounts that path is on, nil if there is none. Of several on
// the same directory that is the uppermost, the last.
func onMount(mounts []cli.Mount, path string) (on *cli.Mount) {
	for i := range mounts {
		m := &mounts[i]
		if under(m.Mountpoint, path) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
			on = m
		}
	}
	return on
}

// insideAdvice adds to err, of a command that takes paths inside the cluster only, what was meant
// by a path that isn't there and looks like one on a mount.
func insideAdvice(err error, path string) error {
	var e *cli.Error
	if dataplane.KindOf(err) != dataplane.NotFound || !errors.As(err, &e) {
		return err
	}
	mounts, mountsErr := cli.Mounts()
	if mountsErr != nil {
		return err // without the advice
	}
	path = filepath.Clean(path)
	if on := onMount(mounts, path); on != nil {
		if inside, insideErr := on.Inside(path); insideErr == nil {
			e.Advice = "give the path inside the cluster: " + inside
		}
	}
	return err
}

// clusterPath is find with these mounts. A mount of another cluster than the named one is refused.
func clusterPath(mounts []cli.Mount, cluster *string, path string) (string, error) {
	path = filepath.Clean(path)
	there, err := cli.Follow(mounts, path)
	if err != nil {
		return "", err
	}
	on := onMount(mounts, there)
	if on == nil {
		return path, nil
	}
	path = there
	name, known := strings.CutPrefix(on.Source, "pstorage://")
	switch {
	case !known: // the mount was given another name
	case *cluster == "":
		*cluster = name
	case *cluster != name:
		return "", cli.Usage("%s is on a mount of cluster %s, not of %s; with -p it is a path inside %s",
			path, name, *cluster, *cluster)
	}
	return on.Inside(path)
}

// under says whether path is dir or below it.
func under(dir, path string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
