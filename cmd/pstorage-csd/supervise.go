package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

// childArgs are the arguments of the child for p.
func childArgs(o csdOptions, p place) []string {
	args := append([]string{"--child", "-c", p.cluster, "-r", p.daemon.Dir}, o.log.Args()...)
	args = append(args, o.scrub.args()...)
	if o.relay > 0 {
		args = append(args, "--relay-from", strconv.FormatInt(int64(o.relay), 10))
	}
	if o.crcs.Size > 0 {
		args = append(args, "--crc-memory", o.crcs.String())
	}
	return args
}

// supervise runs the supervisor of the chosen chunk servers until ctx ends.
func supervise(ctx context.Context, o csdOptions, out io.Writer) error {
	if err := o.log.Abs(); err != nil {
		return err
	}
	for i, dir := range o.dirs {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return cli.Fail("find "+dir, err, "")
		}
		o.dirs[i] = abs
	}
	log, err := o.log.Open(os.Stderr)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return cli.Fail("find this program", err, "")
	}
	removePID, err := o.log.WritePID()
	if err != nil {
		return err
	}
	defer removePID()
	certifier := newCertifier(log)
	defer certifier.close()
	s := &supervisor{
		spawner: cli.NewSpawner(),
		log:     log,
		list:    func() ([]place, error) { return listPlaces(cluster.EtcDir(), o) },
		command: func(p place) *exec.Cmd {
			go certifier.client(p.cluster) // connected before the first report
			cmd := exec.Command(self, childArgs(o, p)...)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			// A Ctrl-C at a terminal is for the supervisor, which stops the children in order; to
			// them it would be the second signal, which ends them at once.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			return cmd
		},
		certify: certifier.certify,
		refuse:  certifier.refuse,
		ready:   func() { cli.Notify("READY=1") },
		wake:    onSIGHUP(ctx),
	}
	if err := o.metrics.Serve(ctx, log, s.beats.collect); err != nil {
		return err
	}
	pings := make(chan chan struct{})
	s.pings = pings
	go cli.Watchdog(ctx, log, func(ctx context.Context) error { return ping(ctx, pings) })
	places, err := s.list()
	if err != nil {
		return cli.Fail("", err, "")
	}
	if len(places) == 0 {
		fmt.Fprintf(out, "no chunk server on this node yet (looked under %s); waiting for one\n",
			cluster.EtcDir())
	}
	log.Info("supervising chunk servers", "number", len(places))
	err = s.run(ctx)
	cli.Notify("STOPPING=1")
	return cli.Fail("", err, "")
}

// ping returns nil when the supervisor has answered, or ctx's error.
func ping(ctx context.Context, pings chan<- chan struct{}) error {
	answer := make(chan struct{})
	select {
	case pings <- answer:
		<-answer
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listPlaces returns the chunk servers that should run.
func listPlaces(etc string, o csdOptions) ([]place, error) {
	names := []string{o.cluster}
	if o.cluster == "" {
		var err error
		if names, err = cluster.List(etc); err != nil {
			return nil, err
		}
	}
	var places []place
	for _, name := range names {
		conf, err := cluster.Choose(etc, name)
		if err != nil {
			return nil, err
		}
		daemons, err := conf.Daemons(cluster.CS)
		if err != nil {
			return nil, err
		}
		for _, d := range daemons {
			if len(o.dirs) == 0 || slices.Contains(o.dirs, d.Dir) {
				places = append(places, place{name, d})
			}
		}
	}
	for _, dir := range o.dirs {
		listed := slices.ContainsFunc(places, func(p place) bool { return p.daemon.Dir == dir })
		if !listed {
			return nil, cli.Failf("serve "+dir, "no cs.list has it",
				"make a chunk server there with pstorage make-cs, or check -c and -r")
		}
	}
	return places, nil
}

// onSIGHUP returns a channel that gets a value for each SIGHUP.
func onSIGHUP(ctx context.Context) <-chan struct{} {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	wake := make(chan struct{}, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
				select {
				case wake <- struct{}{}:
				default: // one is waiting already
				}
			}
		}
	}()
	return wake
}
