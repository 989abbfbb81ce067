package mds

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// prefetchStep is how much of a file the kernel is asked for at a time, in bytes.
const prefetchStep = 8 << 20

// prefetch has the kernel read a file in large requests ahead of whoever reads it; a reader alone
// never has more than its small readahead on the way. It is an advice: what fails is read later.
// stop ends it.
func prefetch(path string) (stop func()) {
	f, err := os.Open(path)
	if err != nil {
		return func() {}
	}
	var work sync.WaitGroup
	done := make(chan struct{})
	work.Go(func() {
		defer f.Close()
		st, err := f.Stat()
		for at := int64(0); err == nil && at < st.Size(); at += prefetchStep {
			select {
			case <-done:
				return
			default:
			}
			err = unix.Fadvise(int(f.Fd()), at, prefetchStep, unix.FADV_WILLNEED)
		}
	})
	return func() {
		close(done)
		work.Wait()
	}
}
