package cli

import "testing"

func TestParseMounts(t *testing.T) {
	const info = "22 1 254:0 / / rw,noatime - ext4 /dev/vda rw\n" +
		`50 22 0:40 / /mnt/my\040disk rw,nosuid - fuse.pstorage pstorage://dev rw` + "\n" +
		"51 22 0:41 / /ro ro shared:3 - fuse.pstorage images rw\nnonsense\n- fuse.pstorage\n"
	list := parseMounts(info)
	if len(list) != 2 || list[0] != (Mount{"/mnt/my disk", "pstorage://dev", false}) ||
		list[1] != (Mount{"/ro", "images", true}) {
		t.Errorf("%+v", list)
	}
	if !list[1].On("/ro") || !list[1].On("/mnt/../ro/") || list[1].On("/ro/x") {
		t.Error("it isn't known where a mount is")
	}
}
