package cli

import (
	"os"
	"path/filepath"
	"testing"
)

func TestParseMounts(t *testing.T) {
	const info = "22 1 254:0 / / rw,noatime - ext4 /dev/vda rw\n" +
		`50 22 0:40 / /mnt/my\040disk rw,nosuid - fuse.pstorage pstorage://dev rw` + "\n" +
		"51 22 0:41 / /ro ro shared:3 - fuse.pstorage images rw\nnonsense\n- fuse.pstorage\n" +
		`52 22 0:40 /vm\040s /srv/vm rw - fuse.pstorage pstorage://dev rw` + "\n"
	list := parseMounts(info)
	if len(list) != 3 || list[0] != (Mount{"/mnt/my disk", "/", "pstorage://dev", false}) ||
		list[1] != (Mount{"/ro", "/", "images", true}) ||
		list[2] != (Mount{"/srv/vm", "/vm s", "pstorage://dev", false}) {
		t.Errorf("%+v", list)
	}
	if at, err := Place(list, "/mnt/../ro/"); at != "/ro" || err != nil {
		t.Errorf("a mount point is %q, %v", at, err)
	}
}

// TestFollow: a path leads to a mount by whichever links. What the mount shows isn't looked at.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	for _, path := range []string{mnt, filepath.Join(dir, "srv/deep")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"abs": mnt, "srv/deep/up": "../../mnt/vm", "twice": "abs",
		"mnt/inside": "/etc", "loop": "loop", "away": "srv"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	mounts := []Mount{{Mountpoint: mnt}}
	for path, want := range map[string]string{
		"mnt": "mnt", "abs": "mnt", "abs/x/y": "mnt/x/y", "twice/x": "mnt/x",
		"srv/deep/up/disk": "mnt/vm/disk", "mnt/inside/x": "mnt/inside/x", "abs/inside": "mnt/inside",
		"away/deep": "srv/deep", "not/there": "not/there", "loop/x": "",
	} {
		if want != "" {
			want = filepath.Join(dir, want)
		}
		got, err := Follow(mounts, filepath.Join(dir, path))
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
}

// TestInside: a part of a mount that is mounted elsewhere, too, isn't taken for the whole.
func TestInside(t *testing.T) {
	for _, c := range []struct{ mountpoint, root, path, want string }{
		{"/pcs", "/", "/pcs", "/"},
		{"/pcs", "/", "/pcs/vm/a", "/vm/a"},
		{"/srv/vm", "/vm", "/srv/vm", "/vm"},
		{"/srv/vm", "/vm", "/srv/vm/a/b", "/vm/a/b"},
		{"/srv/disk", "/vm/disk.img", "/srv/disk", "/vm/disk.img"},
		{"/", "/chroot", "/a", "/chroot/a"},
		{"/srv/vm", "/vm//deleted", "/srv/vm/a", ""},
	} {
		m := Mount{Mountpoint: c.mountpoint, Root: c.root}
		if got, err := m.Inside(c.path); got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
