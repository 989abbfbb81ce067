package mds

import (
	"fmt"
	"sync"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestStopUnderLoad stops a server again and again while commands are on their way. Raft never
// answers what waits for its turn when it stops.
func TestStopUnderLoad(t *testing.T) {
	c := prepareTestCluster(t, 1)
	for round := range 10 {
		c.start(0)
		r := c.nodes[0].r
		var load sync.WaitGroup
		started := make(chan struct{}, 64)
		for w := range 64 {
			load.Go(func() {
				for i := 0; ; i++ {
					_, err := r.propose(t.Context(), &cmdCreate{CreateReq: control.CreateReq{
						Parent: dataplane.RootID, Name: fmt.Sprint(round, w, i),
						Type: control.TypeFile}})
					if dataplane.KindOf(err) == dataplane.Closed {
						return
					}
					if i == 3 {
						started <- struct{}{}
					}
				}
			})
		}
		for range cap(started) {
			<-started
		}
		c.stop(0) // hangs if an answer is missing
		load.Wait()
	}
}
