package client

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// wildMeta is metadata servers that answer as a fuzzer says, until that has nothing more to say;
// then as they should. What they say of a chunk is of the file's first one or of none, and of no
// later epoch than it has: they don't tell of what they haven't committed.
type wildMeta struct {
	*fakeMeta
	in []byte
}

func (m *wildMeta) byte() (v byte) {
	if len(m.in) > 0 {
		v, m.in = m.in[0], m.in[1:]
	}
	return v
}

// bytes takes so many bytes as the next one says.
func (m *wildMeta) bytes() (b []byte) {
	n := int(m.byte())
	n = min(n, len(m.in))
	b, m.in = m.in[:n], m.in[n:]
	return b
}

func (m *wildMeta) error() error {
	return dataplane.E("ask a fuzzer", 1+dataplane.Kind(m.byte()), nil)
}

// answer makes an answer for the chunks [first, first+count); both nil: the right one.
func (m *wildMeta) answer(first uint32) (*control.MapReply, error) {
	if len(m.in) == 0 {
		return nil, nil
	}
	r := &control.MapReply{}
	switch mode := m.byte(); mode % 4 {
	case 0:
		return nil, nil
	case 1:
		return nil, m.error()
	case 2:
		if control.Unmarshal(m.bytes(), r) != nil {
			return nil, m.error()
		}
	default:
		for range mode >> 2 & 3 {
			c := control.ChunkMap{Index: first + uint32(m.byte()%4), Epoch: dataplane.Epoch(m.byte()),
				Chunk: m.files[100].chunks[0]}
			if b := m.byte(); b > 3 {
				c.Chunk += dataplane.ChunkID(b)
			}
			for _, cs := range m.bytes() {
				c.Members = append(c.Members, dataplane.CSID(cs))
			}
			r.Chunks = append(r.Chunks, c)
		}
		for range mode >> 4 & 3 {
			how := m.byte()
			cs := control.CSAddr{CS: dataplane.CSID(m.byte() % 8), Live: how&1 != 0, Ill: how&2 != 0}
			switch how >> 2 & 3 {
			case 1:
				cs.Addr = m.w.cs[int(how>>4)%len(m.w.cs)].addr
			case 2:
				cs.Addr = string(m.bytes())
			case 3:
				cs.Addr = "10.9.9.9:1"
			}
			r.Servers = append(r.Servers, cs)
		}
	}
	for i := range r.Chunks {
		c := &r.Chunks[i]
		known := m.w.chunks[c.Chunk]
		if known != nil && c.Index != 0 || c.Epoch > wildEpoch {
			return nil, nil
		}
	}
	return r, nil
}

// wildEpoch is the epoch of all chunks while answers are wild.
const wildEpoch = 100

func (m *wildMeta) GetMap(file dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	if r, err := m.answer(first); r != nil || err != nil {
		m.later("map", file, func(*fakeFile) func() { return func() { cb(r, err) } }, nil)
		return
	}
	m.fakeMeta.GetMap(file, first, count, cb)
}

func (m *wildMeta) Allocate(file dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	if r, err := m.answer(first); r != nil || err != nil {
		m.later("allocate", file, func(*fakeFile) func() { return func() { cb(r, err) } }, nil)
		return
	}
	m.fakeMeta.Allocate(file, first, count, cb)
	for _, ch := range m.w.chunks {
		ch.epoch = wildEpoch
	}
}

// AcquireLease implements Leaser, as do the others.
func (m *wildMeta) AcquireLease(file dataplane.FileID, token uint64,
	cb func(*control.LeaseReply, error)) {
	r, err := &control.LeaseReply{Granted: true, Token: 1000 + token}, error(nil)
	if len(m.in) > 0 {
		switch mode := m.byte(); mode % 4 {
		case 1:
			r, err = nil, m.error()
		case 2:
			if control.Unmarshal(m.bytes(), r) != nil {
				r, err = nil, m.error()
			}
		case 3:
			*r = control.LeaseReply{Granted: mode&4 != 0, Fencing: mode&8 != 0, Holder: 9,
				Token: uint64(m.byte())}
		}
	}
	m.later("lease", file, func(*fakeFile) func() { return func() { cb(r, err) } }, nil)
}

func (m *wildMeta) ReleaseLeases(list []control.FileLease, cb func(error)) {
	var err error
	if len(m.in) > 0 && m.byte()&1 != 0 {
		err = m.error()
	}
	m.later("release", 100, func(*fakeFile) func() { return func() { cb(err) } }, nil)
}

func (m *wildMeta) RenewLeases(list []control.FileLease,
	cb func(*control.RenewLeasesReply, error)) {
	r, err := &control.RenewLeasesReply{}, error(nil)
	if len(m.in) > 0 {
		switch m.byte() % 4 {
		case 1:
			r, err = nil, m.error()
		case 2:
			if control.Unmarshal(m.bytes(), r) != nil {
				r, err = nil, m.error()
			}
		case 3:
			for _, l := range list {
				r.Lost = append(r.Lost, control.LostLease{File: l.File, Token: l.Token + uint64(m.byte()%2)})
			}
		}
	}
	m.later("renew", 100, func(*fakeFile) func() { return func() { cb(r, err) } }, nil)
}

// FuzzMetaReplies gives the client arbitrary answers about maps and leases: it must not panic, must
// give every operation an end, and must go on when the answers are as they should be.
func FuzzMetaReplies(f *testing.F) {
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{1, 3, 1, 7, 3, 8, 9, 3, 0, 1, 20, 2, 2, 1, 9, 1, 1, 3, 4, 5})
	f.Add(bytes.Repeat([]byte{1, byte(dataplane.TimedOut) - 1, 1, byte(dataplane.NotLeader) - 1}, 9))
	f.Add(bytes.Repeat([]byte{7, 0, 2, 0, 3, 1, 2, 3, 23, 1, 4, 0, 1, 4, 33, 2}, 6))
	f.Add(bytes.Repeat([]byte{3, 15, 7, 9}, 16))
	for _, p := range []any{&control.MapReply{Chunks: []control.ChunkMap{{Chunk: 77, Epoch: 1,
		Members: []dataplane.CSID{1, 2}}}, Servers: []control.CSAddr{{CS: 2, Addr: "nowhere"}}},
		&control.LeaseReply{Granted: true, Token: 7}, &control.LeaseReply{Fencing: true, Token: 8},
		&control.RenewLeasesReply{Lost: []control.LostLease{{File: 100, Token: 7, By: "me"}}}} {
		raw := control.Marshal(p)
		one := slices.Concat([]byte{2, byte(len(raw))}, raw)
		f.Add(slices.Concat(one, one, []byte{0}, one))
		f.Add(slices.Concat([]byte{0}, one))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 256 {
			t.Skip("long inputs find nothing that short ones don't")
		}
		var m *wildMeta
		w := newWorld(t, 1, 3, func(o *Options) {
			m = &wildMeta{fakeMeta: o.Meta.(*fakeMeta)}
			o.Meta = m
		})
		defer w.pool.Close()
		file := w.file(200 << 20) // the chunks behind the first don't exist
		want := w.random(150_000)
		w.write(file, 0, want)
		for _, ch := range w.chunks {
			ch.epoch = wildEpoch
		}
		w.eng.leases.meta = m
		m.in = b
		w.env.Do(func() { file.forgetFrom(0) })
		end := w.writer(file)
		if len(b) > 0 {
			// Writes and a renewal meanwhile, of what is there, as answers may say that it isn't.
			far := binary.BigEndian.Uint16(append(b[:len(b):len(b)], 0))
			w.run(&Op{Kind: Read, File: file, Buf: make([]byte, 150_000)},
				&Op{Kind: Write, File: file, Buf: want},
				&Op{Kind: Write, File: file, Offset: int64(far%3+1) << 26, Buf: want[:5000]},
				&Op{Kind: Zero, File: file, Offset: 64 << 20, Length: 130 << 20})
			w.env.Do(file.renewGrant)
			w.run(&Op{Kind: Write, File: file, Offset: 4096, Buf: want[4096:8192]},
				&Op{Kind: Flush, File: file})
			w.env.Do(func() { w.eng.renewLeases(w.eng.leases.held) })
			end()
		}
		m.in = nil
		w.pass(30e9)
		w.writer(file)
		w.write(file, 0, want)
		if got := w.read(file, 0, len(want)); !bytes.Equal(got, want) {
			t.Fatal("afterwards the file reads wrong")
		}
	})
}
