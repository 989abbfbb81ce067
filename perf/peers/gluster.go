package peers

import (
	"context"
	"fmt"
)

// gluster: three bricks and fio's gfapi engine, with the options that GlusterFS itself recommends
// for images of virtual machines (group virt: shards, no read-ahead, O_DIRECT as far as the
// bricks).
var gluster = system{
	name:     "glusterfs",
	packages: []string{"glusterfs-server", "glusterfs-cli", "fio"},
	programs: []string{"glusterd", "gluster", "fio", "unshare", "nsenter"},
	own:      []string{"/var/lib/glusterd", "/var/log/glusterfs"},
	about:    "gfapi, options of the group virt, fsync after each write",
	start: func(ctx context.Context, s *sandbox, _ int64) (target, error) {
		const volume = "bench"
		create := []string{"gluster", "--mode=script", "volume", "create", volume, "replica", "3"}
		for i := range 3 {
			dir, err := s.folder(fmt.Sprint("disk", i))
			if err != nil {
				return target{}, err
			}
			create = append(create, address+":"+dir+"/brick")
		}
		err := s.runAll(ctx, []string{"mkdir", "-p", "/run/gluster"}, []string{"glusterd"},
			append(create, "force"),
			[]string{"gluster", "--mode=script", "volume", "set", volume, "group", "virt"},
			[]string{"gluster", "--mode=script", "volume", "start", volume})
		return target{fsync: true, args: []string{"--ioengine=gfapi_async", "--volume=" + volume,
			"--brick=" + address, "--filename=image"}}, err
	},
}
