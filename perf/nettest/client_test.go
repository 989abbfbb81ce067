package nettest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
	"pstorage/perf/history"
)

// roleEnv makes the test's binary a client: its value is a clientRole in JSON.
const roleEnv = "PSTORAGE_NETTEST_CLIENT"

// clientRole says what a client does. It ends when its standard input does.
type clientRole struct {
	Etc     string
	Files   []string // Files[Own] is written, all are read
	Own     int
	Seed    uint64
	Disk    string // a file of the disk that all servers share; empty: it isn't looked at
	History string // where what happened is written to, at the end
}

const (
	blockSize   = dataplane.BlockSize
	fileChunks  = 8                    // of each file
	blocksEach  = 8                    // used blocks of each chunk
	writers     = 4                    // of each client; each has blocks of its own in every chunk
	readers     = 4                    // of each client
	pace        = 2 * time.Millisecond // between two operations of a worker
	metaPace    = 20 * time.Millisecond
	diskBlocks  = 256 // of the file that readDisk reads
	tellEvery   = 20 * time.Millisecond
	giveUpAfter = 60 * time.Second
)

// blockOffset is where a used block lies in its file.
func blockOffset(i int) int64 {
	return int64(i%fileChunks)*dataplane.ChunkSize + int64(i/fileChunks)*blockSize
}

// The kinds of events.
const (
	kindWrite uint8 = iota
	kindRead
	kindMeta  // a question to the metadata servers
	kindError // that an application should never have seen
	kindDisk  // a read of the disk that all servers share, by itself
	kinds
)

// event is one operation. Times are those of CLOCK_MONOTONIC, which all processes share.
type event struct {
	Kind     uint8
	File     uint8
	_        uint16
	Block    uint32
	Value    uint64
	Inv, Ret int64
}

// now is CLOCK_MONOTONIC in nanoseconds.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

func TestMain(m *testing.M) {
	if text := os.Getenv(streamEnv); text != "" {
		if err := stream(text); err != nil {
			fmt.Fprintln(os.Stderr, "stream:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if text := os.Getenv(metaEnv); text != "" {
		var role metaRole
		err := json.Unmarshal([]byte(text), &role)
		if err == nil {
			err = role.run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "metadata client:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if text := os.Getenv(roleEnv); text != "" {
		var role clientRole
		act(text, &role, role.run)
	}
	if text := os.Getenv(writerEnv); text != "" {
		var role writerRole
		act(text, &role, role.run)
	}
	if os.Getenv(holderEnv) != "" {
		act("null", new(any), runHolder)
	}
	os.Exit(m.Run())
}

// act runs a role instead of the tests.
func act(text string, role any, run func() error) {
	err := json.Unmarshal([]byte(text), role)
	if err == nil {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// worker is one stream of operations, one at a time.
type worker struct {
	role    *clientRole
	files   []*client.File
	rng     *rand.Rand
	number  int
	tags    uint64
	stopped *atomic.Bool
	acked   *atomic.Int64
	buf     []byte
	events  []event
}

// run is a client's process.
func (r *clientRole) run() error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	conf, err := cluster.Choose(r.Etc, clusterName)
	if err != nil {
		return err
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		return err
	}
	ctx := context.Background()
	c, err := client.Open(ctx, client.ClientOptions{Cred: &cred, MDSAddrs: conf.BSOrNone})
	if err != nil {
		return err
	}
	var files []*client.File
	for _, path := range r.Files {
		f, err := c.OpenPath(ctx, path)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	var stopped atomic.Bool
	var wrote, read, asked atomic.Int64
	var workers []*worker
	var wg sync.WaitGroup
	launch := func(do func(*worker), acked *atomic.Int64) {
		w := &worker{role: r, files: files, number: len(workers), stopped: &stopped, acked: acked,
			rng: rand.New(rand.NewPCG(r.Seed, uint64(len(workers)))), buf: make([]byte, blockSize)}
		workers = append(workers, w)
		wg.Go(func() { do(w) })
	}
	for range writers {
		launch((*worker).write, &wrote)
	}
	for range readers {
		launch((*worker).read, &read)
	}
	launch(func(w *worker) { w.ask(ctx, c) }, &asked)
	if r.Disk != "" {
		launch((*worker).readDisk, &asked)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // whatever ends it
		stopped.Store(true)
	}()
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	if err := tell(done, &stopped, &wrote, &read); err != nil {
		return err
	}
	return save(r.History, workers)
}

// tell prints how much was acknowledged until all workers are done.
func tell(done <-chan struct{}, stopped *atomic.Bool, wrote, read *atomic.Int64) error {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	var giveUp <-chan time.Time
	for {
		select {
		case <-done:
			return nil
		case <-giveUp:
			return fmt.Errorf("operations are stuck: not done %v after the end", giveUpAfter)
		case <-tick.C:
		}
		if stopped.Load() && giveUp == nil {
			giveUp = time.After(giveUpAfter)
		}
		if _, err := fmt.Println(wrote.Load(), read.Load()); err != nil {
			return err
		}
	}
}

// record adds an operation. A failed one must not have happened in front of the application's
// eyes: all errors are events that fail the test.
func (w *worker) record(e event, err error) {
	if err == nil {
		e.Ret = now()
		w.acked.Add(1)
	} else {
		fmt.Fprintf(os.Stderr, "client: file %d block %d: %v\n", e.File, e.Block, err)
		w.events = append(w.events, event{Kind: kindError, File: e.File, Block: e.Block, Inv: e.Inv,
			Ret: now()})
		if e.Kind != kindWrite {
			return
		}
		e.Ret = history.Never
	}
	w.events = append(w.events, e)
}

// write writes the worker's own blocks in random order.
func (w *worker) write() {
	for !w.stopped.Load() {
		own := fileChunks * blocksEach / writers
		block := w.rng.IntN(own/fileChunks)*fileChunks*writers + w.number*fileChunks +
			w.rng.IntN(fileChunks)
		w.tags++
		tag := uint64(w.role.Own+1)<<56 | uint64(w.number)<<48 | w.tags
		for i := 0; i < blockSize; i += 8 {
			binary.LittleEndian.PutUint64(w.buf[i:], tag)
		}
		e := event{Kind: kindWrite, File: uint8(w.role.Own), Block: uint32(block), Value: tag,
			Inv: now()}
		_, err := w.files[w.role.Own].WriteAt(w.buf, blockOffset(block))
		w.record(e, err)
		time.Sleep(pace)
	}
}

var errTorn = errors.New("a block has parts of several writes")

// read reads blocks of all files in random order.
func (w *worker) read() {
	for !w.stopped.Load() {
		file, block := w.rng.IntN(len(w.files)), w.rng.IntN(fileChunks*blocksEach)
		e := event{Kind: kindRead, File: uint8(file), Block: uint32(block), Inv: now()}
		_, err := w.files[file].ReadAt(w.buf, blockOffset(block))
		e.Value = binary.LittleEndian.Uint64(w.buf)
		for i := 8; i < blockSize && err == nil; i += 8 {
			if binary.LittleEndian.Uint64(w.buf[i:]) != e.Value {
				err = errTorn
			}
		}
		w.record(e, err)
		time.Sleep(pace)
	}
}

// ask puts one question after the other to the metadata servers.
func (w *worker) ask(ctx context.Context, c *client.Client) {
	e := event{Kind: kindMeta, Inv: now()}
	for !w.stopped.Load() {
		_, err := c.GetAttr(ctx, w.files[0].ID())
		if err == nil {
			w.record(e, nil)
			e.Inv = now()
		} else { // tried again: the time counts from the first try on
			fmt.Fprintln(os.Stderr, "client: metadata:", err)
		}
		time.Sleep(metaPace)
	}
}

// readDisk reads the disk as the servers do, without them: what takes long there, or because this
// process isn't run, isn't for them to answer for.
func (w *worker) readDisk() {
	f, err := os.OpenFile(w.role.Disk, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		w.record(event{Kind: kindDisk, Inv: now()}, err)
		return
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // aligned
	if err != nil {
		w.record(event{Kind: kindDisk, Inv: now()}, err)
		return
	}
	for !w.stopped.Load() {
		e := event{Kind: kindDisk, Inv: now()}
		_, err := f.ReadAt(buf, int64(w.rng.IntN(diskBlocks))*blockSize)
		w.record(e, err)
		time.Sleep(pace)
	}
}

// save writes what all workers did.
func save(path string, workers []*worker) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	b := bufio.NewWriter(f)
	for _, w := range workers {
		if err := binary.Write(b, binary.LittleEndian, w.events); err != nil {
			return err
		}
	}
	return errors.Join(b.Flush(), f.Close())
}

// load reads what save wrote.
func load(path string) ([]event, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	events := make([]event, len(data)/binary.Size(event{}))
	_, err = binary.Decode(data, binary.LittleEndian, events)
	return events, err
}
