package metrics

import (
	"context"
	"errors"

	"pstorage/dataplane/client"
)

// Client returns a Collector for a program that is a client of a cluster: what its data path
// counts.
func Client(c *client.Client, labels ...string) Collector {
	return func(ctx context.Context, t *Text) error {
		s, err := clientStats(ctx, c)
		if err != nil {
			return err
		}
		Process(t)
		for i, n := range s.Ops {
			t.Family(Counter, "pstorage_client_ops", "", "Operations finished").
				Add(float64(n), append(labels[:len(labels):len(labels)], "op",
					client.OpKind(i).String())...)
		}
		for _, n := range []struct {
			name, help string
			value      uint64
		}{
			{"pstorage_client_requests", "Requests sent to chunk servers", s.Parts},
			{"pstorage_client_retries", "Requests that waited and were tried again", s.Retries},
			{"pstorage_client_failovers", "Reads that went to another member", s.Failovers},
			{"pstorage_client_hedges", "Reads sent to another member as well", s.Hedges},
			{"pstorage_client_late_answers", "Answers that nobody waited for any more", s.Late},
			{"pstorage_client_bad_crcs", "Answers that didn't match their checksums", s.BadCRCs},
			{"pstorage_client_map_fetches", "Questions for chunk maps", s.MapFetches},
			{"pstorage_client_map_pushes", "Changed chunks told by the metadata servers", s.MapPushes},
			{"pstorage_client_allocations", "Questions for new chunks", s.Allocations},
			{"pstorage_client_connections_lost", "Connections to chunk servers lost", s.ConnsLost},
		} {
			t.Family(Counter, n.name, "", n.help).Add(float64(n.value), labels...)
		}
		return nil
	}
}

// ClientAlive returns nil when the client's loop has answered.
func ClientAlive(c *client.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := clientStats(ctx, c)
		return err
	}
}

func clientStats(ctx context.Context, c *client.Client) (client.Stats, error) {
	answer := make(chan client.Stats, 1)
	c.Loop().Post(func() { answer <- c.Engine().Stats() })
	select {
	case s := <-answer:
		return s, nil
	case <-c.Loop().Done():
		return client.Stats{}, errors.New("the event loop has ended")
	case <-ctx.Done():
		return client.Stats{}, ctx.Err()
	}
}
