package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

const statPoll = 250 * time.Millisecond

// waitHealthy waits until the cluster is healthy, shows how far that is, and prints the state. No
// answer for a while, as during an election, isn't the end; a refusal is, as it won't change by
// itself: the node was revoked, or missed a change of the keys.
func waitHealthy(ctx context.Context, a *app, patience time.Duration,
	out, messages io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	what := "wait for cluster " + conn.conf.Name() + " to be healthy"
	line := newWaitLine(messages, a.output == "json")
	defer line.end()
	var pace recoveryPace
	end := time.Now().Add(patience)
	for {
		var doc control.StatDoc
		err := conn.get(ctx, "show the state", control.AdminStat, nil, &doc)
		now := time.Now()
		if err == nil && healthy(&doc) {
			line.end()
			line.quiet = true
			return a.print(out, doc, func(t *table) { showStat(t, doc) })
		}
		if err == nil {
			pace.add(&doc)
		}
		state := waitText(&doc, &pace, err)
		switch {
		case ctx.Err() != nil:
			return cli.Failf(what, "interrupted", "")
		case dataplane.KindOf(err) == dataplane.Denied,
			dataplane.KindOf(err) == dataplane.WrongCluster:
			return err
		case patience > 0 && now.After(end):
			return cli.Failf(what, state, "pstorage stat has the reasons")
		}
		line.show(now, state)
		select {
		case <-ctx.Done():
		case <-time.After(statPoll):
		}
	}
}

// healthy says whether nothing is left to be done: all metadata servers answer and vote, all chunk
// servers serve, every chunk has its copies.
func healthy(d *control.StatDoc) bool {
	for _, m := range d.MDS {
		if m.Down || !m.Voter {
			return false
		}
	}
	return d.Health == "healthy"
}

// waitText is what is waited for, in one line.
func waitText(d *control.StatDoc, pace *recoveryPace, err error) string {
	if err != nil {
		return "no answer: " + cli.OneLine(err)
	}
	text := d.Health
	for _, m := range d.MDS {
		if m.Down || !m.Voter {
			text += fmt.Sprintf("; mds %s doesn't take part", clean(m.ID))
		}
	}
	for i, reason := range d.Reasons {
		if i == 2 {
			text += "; ..."
			break
		}
		text += "; " + clean(reason)
	}
	return text + "; copies: " + pace.text(d)
}
