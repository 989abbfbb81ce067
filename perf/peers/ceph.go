package peers

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"time"
)

// ceph: a monitor and three OSDs with BlueStore, and an image without a cache in the client, so
// that each write is durable on all of them. Nobody proves who they are: that only costs time.
var ceph = system{
	name:     "ceph",
	packages: []string{"ceph-mon", "ceph-osd", "ceph-common", "fio"},
	programs: []string{"ceph-mon", "ceph-osd", "monmaptool", "ceph", "rbd", "fio", "unshare",
		"nsenter"},
	own:   []string{"/etc/ceph", "/var/lib/ceph", "/var/log/ceph"},
	about: "rbd, 1 monitor and 3 OSDs (BlueStore), no cache in the client",
	start: startCeph,
}

const cephConf = `[global]
fsid = %s
mon host = %s
public addr = %[2]s
cluster addr = %[2]s
auth cluster required = none
auth service required = none
auth client required = none
mon data = %[3]s/mon
osd data = %[3]s/disk$id
osd pool default size = 3
osd pool default min size = 2
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = bluestore
osd memory target = 1G
bluestore block size = %d
rbd cache = false
`

func startCeph(ctx context.Context, s *sandbox, size int64) (target, error) {
	cluster := uuid()
	conf := fmt.Sprintf(cephConf, cluster, address, s.dir, 4*size+4<<30)
	if err := os.WriteFile(s.owned("/etc/ceph/ceph.conf"), []byte(conf), 0o644); err != nil {
		return target{}, err
	}
	if _, err := s.folder("mon"); err != nil {
		return target{}, err
	}
	monmap := s.dir + "/monmap"
	commands := [][]string{{"mkdir", "-p", "/run/ceph"},
		{"monmaptool", "--create", "--fsid", cluster, "--addv", "a",
			fmt.Sprintf("[v2:%s:3300,v1:%[1]s:6789]", address), monmap},
		{"ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap}, {"ceph-mon", "-i", "a"}}
	for i := range 3 {
		if _, err := s.folder(fmt.Sprint("disk", i)); err != nil {
			return target{}, err
		}
		id, osd := fmt.Sprint(i), uuid()
		commands = append(commands, []string{"ceph", "osd", "new", osd, id},
			[]string{"ceph-osd", "-i", id, "--mkfs", "--osd-uuid", osd}, []string{"ceph-osd", "-i", id})
	}
	const pool, image = "rbd", "bench"
	commands = append(commands, []string{"ceph", "osd", "pool", "create", pool, "32"},
		[]string{"rbd", "create", "--size", fmt.Sprint(size >> 20), "--image-feature", "layering",
			pool + "/" + image})
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // commands of ceph wait for ever
	defer cancel()
	return target{args: []string{"--ioengine=rbd", "--clientname=admin", "--pool=" + pool,
		"--rbdname=" + image}}, s.runAll(ctx, commands...)
}

// uuid is a random one.
func uuid() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
