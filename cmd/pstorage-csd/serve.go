package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"pstorage/chunk"
	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
)

// serveChild serves one directory: this process is a child of the supervisor.
func serveChild(ctx context.Context, o csdOptions, out io.Writer) error {
	if len(o.dirs) != 1 || o.cluster == "" {
		return cli.Usage("--child needs one -r and -c")
	}
	dir := o.dirs[0]
	log, err := o.log.Open(os.Stderr)
	if err != nil {
		return err
	}
	conf, err := cluster.Choose(cluster.EtcDir(), o.cluster)
	if err != nil {
		return cli.Fail("", err, "")
	}
	cred, err := conf.Credentials(dataplane.RoleCS, 0)
	if err != nil {
		return refusal(dir, err)
	}
	addr, err := listenAddr(conf, dir)
	if err != nil {
		return refusal(dir, err)
	}
	location, err := cluster.Location(cluster.EtcDir())
	if err != nil {
		return refusal(dir, err)
	}
	status := os.NewFile(statusFD, "status")
	err = chunk.Run(ctx, chunk.Options{
		Dir: dir, ListenAddr: addr, Cred: &cred, MDS: cli.MDSAddrs(conf),
		Location: location, Log: log.With("dir", dir), RelayFrom: int(o.relay),
		CRCBudget:   int(o.crcs.Size),
		ScrubPeriod: o.scrub.period(), ScrubRate: o.scrub.rate(),
		OnIdentity: func(id dataplane.CSID, boot uint64) {
			fmt.Fprintf(status, "id %d %d\n", id, boot)
		},
		OnObserve: func(seen *chunk.Observation) {
			if line, err := json.Marshal(seen); err == nil {
				fmt.Fprintf(status, beatPrefix+"%s\n", line)
			}
		},
		OnReady: func(id dataplane.CSID, addr string) {
			fmt.Fprintf(out, "cs %d ready on %s\n", id, addr)
			fmt.Fprintf(status, "ready %s\n", addr)
		},
	})
	if err != nil && o.log.File != "" {
		// stderr may go nowhere
		log.Error("the chunk server has ended", "dir", dir, "err", refusal(dir, err))
	}
	if err = refusal(dir, err); refusesToServe(err) {
		tellRefusal(status, dir, cred.Cluster, err)
	}
	return err
}

func refusesToServe(err error) bool {
	var e *cli.Error
	return errors.As(err, &e) && e.Status == cli.ExitRefuse
}

// tellRefusal tells the supervisor why nobody can serve dir, for the metadata servers of its
// cluster. What lies there may be another one's chunk server, whose number means nothing here.
func tellRefusal(status io.Writer, dir string, of dataplane.ClusterID, err error) {
	cs := dataplane.CSID(0)
	if id, e := chunk.ReadIdentity(dir); e == nil && id.Cluster == of.String() {
		cs = id.CS
	}
	fmt.Fprintf(status, "refuse %d %s\n", cs, strings.Join(strings.Fields(err.Error()), " "))
}

// refusal gives errors that another start wouldn't mend the exit status that says so.
func refusal(dir string, err error) error {
	if err == nil {
		return nil
	}
	e := &cli.Error{What: "serve chunk server " + dir, Why: plain{err}}
	if cli.Refusal(err) {
		e.Status = cli.ExitRefuse
	}
	return e
}

// plain is an error in words, without its kinds.
type plain struct{ error }

func (e plain) Error() string { return dataplane.Reason(e.error) }
func (e plain) Unwrap() error { return e.error }

// listenAddr returns the address that cs.list has for dir; empty if it has none.
func listenAddr(conf *cluster.Conf, dir string) (string, error) {
	daemons, err := conf.Daemons(cluster.CS)
	if err != nil {
		return "", err
	}
	for _, d := range daemons {
		if d.Dir == dir {
			return d.Addr, nil
		}
	}
	return "", nil
}
