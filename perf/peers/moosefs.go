package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// moosefs: a master, three chunk servers and a mount. A chunk server doesn't sync what it has
// written when a client syncs: a write is in the page caches of three processes.
var moosefs = system{
	name:     "moosefs",
	packages: []string{"moosefs-master", "moosefs-chunkserver", "moosefs-client", "fio"},
	programs: []string{"mfsmaster", "mfschunkserver", "mfsmount", "mfssetgoal", "fio", "unshare",
		"nsenter"},
	own:   []string{"/etc/mfs", "/var/lib/mfs"},
	about: "fio on a mount, fsync after each write, which its servers don't pass on to their disks",
	start: startMoosefs,
}

func startMoosefs(ctx context.Context, s *sandbox, _ int64) (target, error) {
	const user = "WORKING_USER = root\nWORKING_GROUP = root\n"
	etc := s.owned("/etc/mfs")
	mount, err := s.folder("mount")
	if err != nil {
		return target{}, err
	}
	write := func(name, text string) error {
		return os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644)
	}
	err = errors.Join(write("mfsexports.cfg", "* / rw,alldirs,maproot=0\n"),
		write("mfsmaster.cfg", user+"DATA_PATH = /var/lib/mfs\n"),
		os.WriteFile(s.owned("/var/lib/mfs/metadata.mfs"), []byte("MFSM NEW"), 0o644)) // none yet
	if err != nil {
		return target{}, err
	}
	commands := [][]string{{"mfsmaster", "start"}}
	for i := range 3 {
		data, err := s.folder(fmt.Sprint("data", i))
		if err != nil {
			return target{}, err
		}
		disk, err := s.folder(fmt.Sprint("disk", i))
		if err != nil {
			return target{}, err
		}
		conf, hdd := fmt.Sprintf("cs%d.cfg", i), fmt.Sprintf("hdd%d.cfg", i)
		err = errors.Join(write(hdd, disk+"\n"), write(conf, fmt.Sprintf(
			"%sDATA_PATH = %s\nHDD_CONF_FILENAME = /etc/mfs/%s\nMASTER_HOST = %s\n"+
				"CSSERV_LISTEN_PORT = %d\n", user, data, hdd, address, 9422+i)))
		if err != nil {
			return target{}, err
		}
		commands = append(commands, []string{"mfschunkserver", "-c", "/etc/mfs/" + conf, "start"})
	}
	commands = append(commands, []string{"mfsmount", mount, "-H", address},
		[]string{"mfssetgoal", "-r", "3", mount})
	if err := s.runAll(ctx, commands...); err != nil {
		return target{}, err
	}
	// A chunk that is written before all servers have registered has fewer copies.
	file := filepath.Join(mount, "image")
	copied := func() error {
		_, err := s.run(ctx, "sh", "-c", `rm -f "$0" && echo x >"$0" && mfsfileinfo "$0" |
			grep -q "copy 3.*VALID"`, file)
		return err
	}
	return target{fsync: true, args: []string{"--ioengine=io_uring", "--filename=" + file}},
		await(ctx, 20*time.Second, copied)
}

// await tries something until it works, for as long as limit.
func await(ctx context.Context, limit time.Duration, what func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := what()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v: %w", limit, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
