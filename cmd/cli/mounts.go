package cli

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mountType is what mount(8) calls our mounts.
const mountType = "fuse.pstorage"

// Mount is a mount of pstorage on this node.
type Mount struct {
	Mountpoint string `json:"mountpoint"`
	// Root is what of the cluster is there: "/", or another path if a part of a mount was mounted
	// once more (mount --bind). The kernel adds "//deleted" if that was removed.
	Root     string `json:"root"`
	Source   string `json:"source"` // pstorage://CLUSTER, unless the mount was given another name
	ReadOnly bool   `json:"read_only"`
}

// Mounts lists the mounts of this node.
func Mounts() ([]Mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, Fail("list the mounts", Plain(err), "")
	}
	return parseMounts(string(text)), nil
}

// parseMounts finds the mounts of pstorage in the text of /proc/self/mountinfo, see proc(5).
func parseMounts(text string) (list []Mount) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text) {
		own, rest, ok := strings.Cut(line, " - ")
		fields, more := strings.Fields(own), strings.Fields(rest)
		if !ok || len(fields) < 6 || len(more) < 2 || more[0] != mountType {
			continue
		}
		list = append(list, Mount{Mountpoint: unescape.Replace(fields[4]),
			Root: unescape.Replace(fields[3]), Source: unescape.Replace(more[1]),
			ReadOnly: strings.HasPrefix(fields[5]+",", "ro,")})
	}
	return list
}

// Inside returns the path inside the cluster of a path on the mount, which is clean and absolute.
func (m *Mount) Inside(path string) (string, error) {
	if root, removed := strings.CutSuffix(m.Root, "//deleted"); removed {
		return "", Failf("find "+path+" in the cluster", "what "+m.Mountpoint+" shows, "+root+
			", was removed", "")
	}
	return filepath.Join(m.Root, strings.TrimPrefix(path, m.Mountpoint)), nil
}

// maxLinks is how many symbolic links are followed, as by the kernel.
const maxLinks = 40

// Follow returns path, which is absolute, without symbolic links on the way to one of the mounts,
// so that it begins with that one's mount point. What a mount shows isn't looked at: its cluster
// may not answer. What isn't there is left as it is.
func Follow(mounts []Mount, path string) (string, error) {
	at, rest, links := "/", strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		if slices.ContainsFunc(mounts, func(m Mount) bool { return m.Mountpoint == next }) {
			return filepath.Join(append([]string{next}, rest...)...), nil
		}
		to, err := os.Readlink(next)
		if err != nil { // no link, or not there
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", Failf("find "+path, "too many symbolic links", "")
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return at, nil
}

// Place returns the mount point that path means: absolute, and as the kernel knows it.
func Place(mounts []Mount, path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", Fail("find "+path, err, "")
	}
	return Follow(mounts, abs)
}

// RefuseMounted says that something of pstorage is mounted on a directory already: a second mount
// would hide the first, and need a second umount. It also says so if that one doesn't answer.
func RefuseMounted(mountpoint string) error {
	mounts, err := Mounts()
	if err == nil {
		mountpoint, err = Place(mounts, mountpoint)
	}
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Mountpoint != mountpoint {
			continue
		}
		if orphaned(m.Mountpoint) {
			return Failf("mount on "+m.Mountpoint, "a mount whose process is gone is still there",
				"remove it with: umount -l "+m.Mountpoint)
		}
		return Failf("mount on "+m.Mountpoint, m.Source+" is mounted there already",
			"choose another directory, or first: pstorage umount "+m.Mountpoint)
	}
	return nil
}

// orphaned says whether a mount's process is gone. Nobody waits for one that lives and doesn't get
// an answer from its cluster.
func orphaned(mountpoint string) bool {
	result := make(chan error, 1)
	go func() {
		_, err := os.Stat(mountpoint)
		result <- err
	}()
	select {
	case err := <-result:
		return errors.Is(err, unix.ENOTCONN)
	case <-time.After(time.Second):
		return false
	}
}
