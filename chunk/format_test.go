package chunk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pstorage/dataplane"
)

func TestZeroCRC(t *testing.T) {
	if zeroCRC != dataplane.ZeroBlockCRC {
		t.Fatalf("zeroCRC is %#x", dataplane.ZeroBlockCRC)
	}
}

func TestWords(t *testing.T) {
	for _, crc := range []uint32{zeroCRC, zeroCRC ^ 1, zeroCRC ^ 2, zeroCRC ^ 3, 0, 1, 0xffffffff} {
		w := word(crc, false)
		if w == wordZeros || w == wordUnknown {
			t.Errorf("content with checksum %#x gets the word %d", crc, w)
		}
		if !wordMatches(w, crc) {
			t.Errorf("word %d doesn't match its own checksum %#x", w, crc)
		}
	}
	if word(zeroCRC, true) != wordZeros || !wordMatches(wordZeros, zeroCRC) {
		t.Error("zeros aren't the word 0")
	}
	for _, crc := range []uint32{zeroCRC, zeroCRC ^ 2, 0, 1, 2} {
		if wordMatches(wordUnknown, crc) {
			t.Errorf("the unknown word matches %#x", crc)
		}
	}
	b := make([]byte, dataplane.BlockSize)
	if wordOf(dataplane.CRC(b), b) != wordZeros {
		t.Error("a block of zeros isn't stored as such")
	}
	b[4095] = 1
	if isZero(b) || !isZero(b[:4095]) || !isZero(nil) {
		t.Error("isZero")
	}
}

func TestSuperblock(t *testing.T) {
	for _, slots := range []uint32{1, 31, 32, 33, 1000, 1 << 18} {
		s := newSuperblock(slots)
		s.disk, s.log, s.cluster = uuid{1, 2}, uuid{3}, dataplane.ClusterID{4}
		areas := []int64{superSize, s.table, s.stage, s.crcs, s.data, s.size()}
		for i := 1; i < len(areas); i++ {
			if areas[i] < areas[i-1] || areas[i]%dataplane.BlockSize != 0 {
				t.Fatalf("areas %v", areas)
			}
		}
		b := make([]byte, superSize)
		s.put(b)
		var got superblock
		if err := got.decode(b); err != nil || got != s {
			t.Fatalf("%v: %+v, want %+v", err, got, s)
		}
		for _, at := range []int{0, 8, 20, 64, 75, 4095} {
			b[at] ^= 0x40
			if got.decode(b) == nil {
				t.Fatalf("damage at %d wasn't seen", at)
			}
			b[at] ^= 0x40
		}
	}
}

func TestSlotEntry(t *testing.T) {
	e := slotEntry{chunk: 1<<40 | 7, epoch: 3, last: 99, commit: 90, tailOff: 4096, tailLen: 8192,
		inOrder: true}
	for i := range e.pages {
		e.pages[i] = uint32(i) * 0x1010101
	}
	var b [entrySize]byte
	e.put(b[:], 17)
	var got slotEntry
	if err := got.decode(b[:], 17); err != nil || got != e {
		t.Fatalf("%v: %+v", err, got)
	}
	// As programs write it that don't know the field.
	binary.LittleEndian.PutUint32(b[108:], 0)
	binary.LittleEndian.PutUint32(b[entrySize-4:], entryCRC(b[:], 17))
	if err := got.decode(b[:], 17); err != nil || got.inOrder {
		t.Fatalf("%v: %+v", err, got)
	}
	if got.decode(b[:], 18) == nil {
		t.Fatal("an entry in another slot's place was taken")
	}
	for i := range b {
		b[i] ^= 1
		if got.decode(b[:], 17) == nil {
			t.Fatalf("damage at byte %d wasn't seen", i)
		}
		b[i] ^= 1
	}
	if err := got.decode(make([]byte, entrySize), 5); err != nil || got.chunk != 0 {
		t.Fatal("a fresh entry isn't free")
	}
}

func TestStage(t *testing.T) {
	s := newSuperblock(64)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 1, 3, stageRound} {
		b := make([]byte, stageHeadSize+n*dataplane.BlockSize)
		var pages []stagedPage
		for i := range n {
			img := b[stageHeadSize+i*dataplane.BlockSize:][:dataplane.BlockSize]
			binary.LittleEndian.PutUint64(img, rng.Uint64())
			pages = append(pages, stagedPage{s.crcPage(uint32(i)), dataplane.CRC(img)})
		}
		putStage(b, 42, pages)
		round, got, images := restage(b, &s)
		if round != 42 || len(got) != n || len(images) != n {
			t.Fatalf("round %d, %d pages", round, len(got))
		}
		if n == 0 {
			continue
		}
		for _, at := range []int{0, 9, 17, 61, 64, 72, stageHeadSize + 1, len(b) - 1} {
			b[at] ^= 1
			if _, got, _ := restage(b, &s); len(got) > 0 && at != len(b)-1 {
				t.Fatalf("damage at %d wasn't seen", at)
			}
			b[at] ^= 1
		}
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	id := &Identity{Version: identityVersion, ClusterName: "c", Capacity: 1 << 30, LogPath: cacheFile,
		Cluster: dataplane.ClusterID{1}.String(), Disk: uuid{2}.String(), Log: uuid{3}.String(), Boot: 7,
		Starts: []uint64{1<<64 - 1, 3}}
	if err := id.write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := ReadIdentity(dir)
	if err != nil || !reflect.DeepEqual(got, id) {
		t.Fatalf("%v: %+v", err, got)
	}
	b := id.encode()
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		if _, err := decodeIdentity(c); err == nil {
			t.Fatalf("damage at byte %d wasn't seen", i)
		}
	}
}

func FuzzSuperblock(f *testing.F) {
	s := newSuperblock(100)
	b := make([]byte, superSize)
	s.put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s superblock
		if len(b) >= superSize {
			b = bytes.Clone(b)
			binary.LittleEndian.PutUint32(b[superSize-4:], dataplane.CRC(b[:superSize-4]))
		}
		if s.decode(b) == nil && s.size() <= 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func FuzzSlotEntry(f *testing.F) {
	e := slotEntry{chunk: 5, epoch: 1, last: 3, commit: 2}
	b := make([]byte, entrySize)
	e.put(b, 3)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < entrySize {
			return
		}
		b = bytes.Clone(b[:entrySize])
		binary.LittleEndian.PutUint32(b[entrySize-4:], entryCRC(b, 3))
		var e slotEntry
		if e.decode(b, 3) == nil && e.chunk != 0 &&
			(e.commit > e.last || e.tailLen > dataplane.ChunkSize) {
			t.Fatalf("%+v", e)
		}
	})
}

func FuzzStage(f *testing.F) {
	s := newSuperblock(16)
	b := make([]byte, stageHeadSize)
	putStage(b, 1, []stagedPage{{s.table, 1}, {s.crcPage(3), 2}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= stageHeadSize {
			b = bytes.Clone(b)
			if n := binary.LittleEndian.Uint32(b[16:]); n <= maxStaged {
				binary.LittleEndian.PutUint32(b[60:], stageCRC(b, int(n)))
			}
		}
		_, pages, _ := decodeStage(b, &s)
		for _, p := range pages {
			if p.target < s.table || p.target >= s.data {
				t.Fatalf("page for %d", p.target)
			}
		}
		restage(b, &s)
	})
}

func FuzzIdentity(f *testing.F) {
	f.Add([]byte("{}\n"))
	id := strings.Repeat("0a", 16)
	f.Add([]byte(fmt.Sprintf(`{"Version":1,"Cluster":%q,"Disk":%q,"Log":%q,"Capacity":67108864,`+
		`"Starts":[7],"LogPath":"/ssd/j"}`, id, id, id)))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append(bytes.Clone(b), identityTrailer(b)...)
		if id, err := decodeIdentity(b); err == nil {
			if path := id.logPath("/x"); !filepath.IsAbs(path) {
				t.Fatalf("the log is at %q", path)
			}
			if id.diskUUID().String() != strings.ToLower(id.Disk) {
				t.Fatalf("disk %v out of %q", id.diskUUID(), id.Disk)
			}
			enc := id.encode()
			again, err := decodeIdentity(enc)
			if err != nil && len(enc) <= 1<<16 || err == nil && !bytes.Equal(again.encode(), enc) {
				t.Fatalf("%s became %+v, %v", enc, again, err)
			}
		}
	})
}

func FuzzSealReply(f *testing.F) {
	f.Add(uint32(3), make([]byte, 32))
	f.Fuzz(func(t *testing.T, aux uint32, p []byte) {
		if len(p) > dataplane.PartSize {
			return
		}
		h := dataplane.Header{Op: dataplane.OpSeal, Flags: dataplane.FlagReply | dataplane.FlagData,
			Seq: 10, Aux: aux, Length: uint32(len(p))}
		tail, err := parseSeal(&h, crcsOf(p), p)
		if err == nil {
			decide(true, []memberTail{tail, {epoch: 1, last: 4, commit: 2}, {unknown: true}})
		}
	})
}
