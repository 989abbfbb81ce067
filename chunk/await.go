package chunk

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel has begun for a process goes on when that is killed: its direct writes reach the
// disk after it is gone, on a slow disk seconds later, and nothing orders them with those of the
// next process. A batch of the log that isn't there yet when the next start reads it, and lands
// when its place has been written anew, destroys what was acknowledged since. The lock of the
// directory says nothing of them, but those of the files do: see uring.DiskOptions.Lock.

const (
	awaitEvery = 5 * time.Millisecond
	awaitSays  = 2 * time.Second
)

// awaitWrites waits until no write to the file is under way for an earlier process. A file that
// can't be opened isn't its business: whoever opens it says what is wrong.
func awaitWrites(ctx context.Context, path string, log *slog.Logger) error {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	said := time.Now()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			return fmt.Errorf("lock %s: %w", path, err)
		case time.Since(said) >= awaitSays:
			log.Warn("waiting for what an earlier process still writes, or for another one that uses it",
				"path", path)
			said = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for what an earlier process still writes to %s: %w", path,
				context.Cause(ctx))
		case <-time.After(awaitEvery):
		}
	}
}
