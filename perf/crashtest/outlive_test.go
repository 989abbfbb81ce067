package crashtest

import (
	"bufio"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/perf/emulate"
	"pstorage/uring"
)

// writerEnv names the device to a process that begins writes to it and waits to be killed.
const writerEnv = "PSTORAGE_TEST_WRITER"

// TestKilledWrites: what the kernel has begun for a killed process goes on for as long as a slow
// disk takes. The lock of a uring.Disk isn't free before that is over; a chunk server waits for it.
func TestKilledWrites(t *testing.T) {
	rig := openRig(t, emulate.Available)
	disk, err := rig.Add("slow", 16<<20)
	must(t, err)
	must(t, disk.Limit(emulate.Limits{WriteIOPS: 5}))
	exe, err := os.Executable()
	must(t, err)
	args := rig.Wrap(exe)
	child := exec.Command(args[0], args[1:]...)
	child.Env = append(os.Environ(), writerEnv+"="+disk.Device())
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "begun\n" {
		t.Fatal(line, err)
	}
	must(t, child.Process.Kill())
	_ = child.Wait()
	f, err := os.Open(disk.Device())
	must(t, err)
	defer f.Close()
	ended, before := time.Now(), operations(t, disk)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	waited, after := time.Since(ended), operations(t, disk)
	t.Logf("%d writes in %v after the process had ended", after-before, waited)
	if after == before {
		t.Error("nothing was written after the process had ended: this test shows nothing")
	}
	time.Sleep(time.Second) // the disk does five in that time
	if more := operations(t, disk) - after; more > 0 {
		t.Errorf("%d writes for the killed process while somebody else has the lock", more)
	}
}

func operations(t *testing.T, d *emulate.Disk) uint64 {
	t.Helper()
	n, err := d.Operations()
	must(t, err)
	return n
}

// writeAndWait begins writes to the device and says so.
func writeAndWait(device string) int {
	loop, err := uring.NewLoop(uring.LoopOptions{PoolSize: 1 << 20})
	if err != nil {
		panic(err)
	}
	loop.Post(func() {
		d, err := loop.OpenDisk(device, uring.DiskOptions{Lock: true})
		if err != nil {
			panic(err)
		}
		for i := range 10 {
			b := loop.Pool().Get(4096)
			d.Submit(&uring.DiskOp{Kind: uring.DiskWrite, Offset: int64(i) * 8192,
				Bufs: [][]byte{b.Bytes()}, Done: func(*uring.DiskOp) {}})
		}
		time.AfterFunc(500*time.Millisecond, func() { os.Stdout.WriteString("begun\n") })
	})
	if err := loop.Run(); err != nil {
		panic(err)
	}
	return 0
}
