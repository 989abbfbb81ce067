package chunk

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sameDisk says whether two files or block devices lie on the same disk, as far as the kernel
// tells: on partitions of one, say. What can't be found out counts as different.
func sameDisk(a, b string) bool {
	x, y := diskOf(a), diskOf(b)
	return x != "" && x == y
}

// diskOf names the whole disk that a file or block device lies on; empty: it isn't known.
func diskOf(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ""
	}
	dev := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = st.Rdev
	}
	number := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + number)
	if err != nil {
		return number // a file system without a device of its own, such as btrfs or tmpfs
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	return dir
}
