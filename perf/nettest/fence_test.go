package nettest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
)

// writerEnv makes the test's binary a client that writes, or reads, fenceBlocks blocks at once when
// it is told to: "write TAG", "read", "fill N" (writes a block of each of the first N chunks) or
// "quit". Its value is a writerRole in JSON.
const writerEnv = "PSTORAGE_NETTEST_WRITER"

type writerRole struct{ Etc, File string }

const fenceBlocks = 32

// fenceOffset spreads the blocks over four chunks.
func fenceOffset(i int) int64 { return int64(i%4)*dataplane.ChunkSize + int64(i/4)*blockSize }

// run answers "wrote N ERROR" and "have TAG..." with the tags that were found.
func (r *writerRole) run() error {
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
	f, err := c.OpenPath(ctx, r.File)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		var verb string
		var arg uint64
		_, _ = fmt.Sscan(s.Text(), &verb, &arg) // some have no argument
		switch verb {
		case "write":
			n, err := writeAll(f, arg, fenceBlocks, fenceOffset)
			fmt.Println("wrote", n, err)
		case "fill":
			n, err := writeAll(f, arg, int(arg), func(i int) int64 {
				return int64(i)*dataplane.ChunkSize + 1<<20
			})
			fmt.Println("wrote", n, err)
		case "quit":
			err := errors.Join(f.Close(), c.Close())
			fmt.Println("bye", err)
			return err
		default:
			tags, err := readAll(f)
			if err != nil {
				return err
			}
			fmt.Println("have", tags)
		}
	}
	return nil
}

// writeAll writes n blocks at once and returns how many were acknowledged.
func writeAll(f *client.File, tag uint64, n int, at func(i int) int64) (acked int, failed error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	block := binary.LittleEndian.AppendUint64(nil, tag)
	block = bytes.Repeat(block, blockSize/len(block))
	for i := range n {
		wg.Go(func() {
			_, err := f.WriteAt(block, at(i))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			acked++
		})
	}
	wg.Wait()
	return acked, failed
}

// readAll returns the tags of all blocks, each once.
func readAll(f *client.File) (tags []uint64, err error) {
	seen := map[uint64]bool{}
	buf := make([]byte, blockSize)
	for i := range fenceBlocks {
		if _, err := f.ReadAt(buf, fenceOffset(i)); err != nil {
			return nil, err
		}
		for k := 0; k < blockSize; k += 8 {
			if tag := binary.LittleEndian.Uint64(buf[k:]); !seen[tag] {
				seen[tag] = true
				tags = append(tags, tag)
			}
		}
	}
	return tags, nil
}

// writer starts a client of the file on a node.
func (c *testCluster) writer(n int, file string) *child {
	c.t.Helper()
	role, err := json.Marshal(writerRole{Etc: c.etc(c.clients[n]), File: file})
	c.must(err)
	w := c.startChild(c.clients[n], writerEnv+"="+string(role))
	w.hear("ready")
	return w
}

// TestDelayedPackets: what a client sent before it was fenced, and what a network kept until after
// another client has written, never lands (invariant P5 of PROOF). The same packets do land when
// nobody was fenced: so it is the fence that keeps them out.
func TestDelayedPackets(t *testing.T) {
	needs(t)
	c := newCluster(t, "fence", 1, 3, 2)
	mnt := c.mount(c.clients[1])
	file := c.registerFiles(mnt)[0]
	c.must(c.clients[0].Redirect(csPort, holderPort, holderMark))
	hold := c.startChild(c.clients[0], holderEnv+"=1")
	hold.hear("ready")
	order := func(what string) (held, answers int) {
		hold.tell(what)
		_, err := fmt.Sscan(hold.hear(""), &held, &answers)
		c.must(err)
		return held, answers
	}
	heldAtLeast := func(n int) {
		t.Helper()
		c.await(10*time.Second, fmt.Sprintf("%d bytes are held", n), func() error {
			if have, _ := order("count"); have < n {
				return fmt.Errorf("%d", have)
			}
			return nil
		})
	}
	old, next := c.writer(0, file), c.writer(1, file)
	check := func(want string) {
		t.Helper()
		next.tell("read")
		if have := next.hear("have"); have != "["+want+"]" {
			t.Fatalf("the blocks have tags %s, wanted %s", have, want)
		}
	}

	old.tell("write 1")
	old.hear(fmt.Sprint("wrote ", fenceBlocks, " <nil>"))
	check("1")
	order("hold")
	old.tell("write 2")
	heldAtLeast(fenceBlocks * blockSize)
	check("1")
	order("release") // before the client's patience of 2 s is over
	old.hear(fmt.Sprint("wrote ", fenceBlocks, " <nil>"))
	check("2")

	order("hold")
	old.tell("write 3")
	heldAtLeast(fenceBlocks * blockSize)
	c.run(c.clients[1], "revoke", file)
	next.tell("write 4")
	next.hear(fmt.Sprint("wrote ", fenceBlocks, " <nil>"))
	check("4")
	_, before := order("release")
	c.await(30*time.Second, "all that was held was delivered, and each write answered", func() error {
		have, answers := order("count")
		if have > 0 || answers-before < fenceBlocks*dataplane.HeaderSize {
			return fmt.Errorf("%d bytes are held, %d bytes of answers", have, answers-before)
		}
		return nil
	})
	if wrote := old.hear("wrote"); !strings.HasPrefix(wrote, "0 ") || wrote == "0 <nil>" {
		t.Errorf("the fenced client has writes acknowledged that nobody can read: %s", wrote)
	}
	for range 20 {
		check("4")
		time.Sleep(50 * time.Millisecond) // for what may land yet
	}
}
