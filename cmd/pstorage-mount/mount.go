package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync"
	"time"

	"pstorage/cmd/cli"
	"pstorage/cmd/metrics"
	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/fuse"
	"pstorage/uring"
)

const (
	unmountPatience = 5 * time.Second        // for users of the mount, after SIGTERM
	unmountRetry    = 100 * time.Millisecond // between two attempts
)

// run mounts, in the process that the user started or in the one in the background.
func run(ctx context.Context, o mountOptions, out io.Writer) error {
	background := inBackground()
	if !o.foreground && !background {
		return startBackground(ctx)
	}
	result := func(error) {}
	if background {
		var once sync.Once
		result = func(err error) { once.Do(func() { tellResult(err) }) }
	}
	err := mount(ctx, o, background, func(mountpoint string) {
		fmt.Fprintf(out, "mount ready on %s\n", mountpoint)
		cli.Notify("READY=1")
		result(nil)
	})
	result(err)
	return err
}

// mount checks everything, mounts, calls ready, and returns when the mount is gone.
func mount(ctx context.Context, o mountOptions, background bool, ready func(string)) error {
	conf, err := cluster.Choose(cluster.EtcDir(), o.cluster)
	if err != nil {
		return cli.Fail("", err, "name a cluster with -c, or join one with pstorage auth-node")
	}
	options, err := parseOptions(o.options, conf.Name())
	if err != nil {
		return err
	}
	mountpoint, err := checkMountpoint(o.mountpoint)
	if err != nil {
		return err
	}
	held, err := holdMountpoint(mountpoint)
	if err != nil {
		return err
	}
	defer held.Close()
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		return cli.Fail("", err, "")
	}
	if _, err := conf.LoadBS(); err != nil {
		return cli.Fail("", err, "")
	}
	if err := o.log.Abs(); err != nil {
		return err
	}
	log, err := o.log.Open(logTarget(background))
	if err != nil {
		return err
	}
	removePID, err := o.log.WritePID()
	if err != nil {
		return err
	}
	defer removePID()
	if background {
		os.Chdir("/") // not to hold any other file system busy
	}
	c, err := openClient(ctx, conf, o.wait, client.ClientOptions{
		Cred: &cred, MDSAddrs: cli.MDSAddrs(conf), Log: log, Mount: mountpoint,
		Loop: loopOptions(options.overRing)})
	if err != nil {
		return err
	}
	defer c.Close()
	keep, stop := context.WithCancel(ctx)
	defer stop()
	go cli.KeepBS(keep, conf, c.Control(), log)
	collect := metrics.Client(c, "cluster", conf.Name(), "mount", mountpoint)
	if err := o.metrics.Serve(keep, log, collect); err != nil {
		return err
	}
	server, err := fuse.Mount(ctx, fuse.Options{Client: c, Mountpoint: mountpoint,
		AllowOther: options.allowOther, ReadOnly: options.readOnly, FSName: options.fsName,
		OverRing: options.overRing, Log: log})
	if err != nil {
		return cli.Fail("mount on "+mountpoint, err, mountAdvice())
	}
	held.Close() // or else the file system below couldn't be unmounted
	ready(mountpoint)
	go cli.Watchdog(keep, log, metrics.ClientAlive(c))
	wait(ctx, log, server, mountpoint)
	if err := outcome(c.Loop().Done(), mountpoint); err != nil {
		return err
	}
	log.Info("unmounted", "cluster", conf.Name(), "from", mountpoint)
	return nil
}

// outcome is what a mount that is gone ended with: by itself it goes only when the client's event
// loop ended.
func outcome(loopDone <-chan struct{}, mountpoint string) error {
	select {
	case <-loopDone:
		return cli.Failf("serve "+mountpoint, "the event loop ended", "see the log")
	default:
		return nil
	}
}

// loopOptions are those of a client whose mount is to use FUSE over io_uring, or not.
func loopOptions(choice fuse.OverRing) (o uring.LoopOptions) {
	if choice != fuse.Off {
		o.Ring.Flags = fuse.LoopFlags
	}
	return o
}

// logTarget is where messages go without --log: stderr, or in the background, where nobody sees
// that, the system's log.
func logTarget(background bool) io.Writer {
	if !background {
		return os.Stderr
	}
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "pstorage-mount")
	if err != nil {
		return io.Discard
	}
	return w
}

// openClient connects to the cluster.
func openClient(ctx context.Context, conf *cluster.Conf, wait time.Duration,
	o client.ClientOptions) (*client.Client, error) {
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	c, err := client.Open(within, o)
	if err != nil {
		return nil, cli.Fail("reach cluster "+conf.Name(), err,
			"check that pstorage-mdsd runs and that "+conf.BSPath()+" has its address")
	}
	return c, nil
}

func mountAdvice() string {
	if _, err := os.Stat("/dev/fuse"); errors.Is(err, os.ErrNotExist) {
		return "there is no /dev/fuse: load the fuse module (modprobe fuse)"
	}
	if os.Geteuid() != 0 {
		return "run it as root"
	}
	return ""
}

// wait returns when the mount is gone. When ctx ends it is unmounted: in an orderly way if nobody
// uses it, otherwise it is taken out of the tree and its users get errors.
func wait(ctx context.Context, log *slog.Logger, server *fuse.Server, mountpoint string) {
	gone := make(chan struct{})
	go func() {
		server.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return
	case <-ctx.Done():
	}
	cli.Notify("STOPPING=1")
	var err error
	for end := time.Now().Add(unmountPatience); time.Now().Before(end); {
		if err = server.Unmount(); err == nil {
			<-gone
			return
		}
		select {
		case <-gone:
			return
		case <-time.After(unmountRetry):
		}
	}
	log.Warn("the mount is in use: detaching it", "mountpoint", mountpoint, "err", err)
	detach(mountpoint)
	select {
	case <-gone:
	case <-time.After(unmountPatience):
		log.Warn("still in use; open files in it get errors from now on")
	}
}
