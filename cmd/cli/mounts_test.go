package cli

import "testing"

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
	if !list[1].On("/ro") || !list[1].On("/mnt/../ro/") || list[1].On("/ro/x") {
		t.Error("it isn't known where a mount is")
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
