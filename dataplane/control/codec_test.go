package control

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"reflect"
	"testing"

	"pstorage/dataplane"
)

// messageTypes are all types that travel as a payload.
func messageTypes() []reflect.Type {
	seen := map[reflect.Type]bool{}
	types := []reflect.Type{reflect.TypeFor[ErrorReply]()}
	for _, r := range ops {
		for _, v := range []any{r.req, r.reply} {
			if t := reflect.TypeOf(v); v != nil && !seen[t] {
				seen[t] = true
				types = append(types, t)
			}
		}
	}
	return types
}

// fill sets v to something random, with short slices.
func fill(rng *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(rng.Uint64() >> (64 - v.Type().Bits()))
	case reflect.Int64:
		v.SetInt(int64(rng.Uint64()))
	case reflect.String:
		b := make([]byte, rng.IntN(20))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		v.SetString(string(b))
	case reflect.Slice:
		n := rng.IntN(4)
		if n == 0 {
			return // stays nil, as it is decoded
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(rng, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(rng, v.Field(i))
		}
	default:
		panic(v.Kind())
	}
}

func TestCodecRoundTrip(t *testing.T) {
	for _, typ := range messageTypes() {
		for seed := range uint64(50) {
			in := reflect.New(typ)
			fill(rand.New(rand.NewPCG(seed, 3)), in.Elem())
			p := Marshal(in.Interface())
			if q := AppendMarshal([]byte("x"), in.Elem().Interface()); string(q) != "x"+string(p) {
				t.Fatalf("%v: value and pointer differ", typ)
			}
			out := reflect.New(typ)
			fill(rand.New(rand.NewPCG(seed+1, 3)), out.Elem()) // old contents don't matter
			if err := Unmarshal(p, out.Interface()); err != nil {
				t.Fatalf("%v: %v", typ, err)
			}
			if !reflect.DeepEqual(in.Interface(), out.Interface()) {
				t.Fatalf("%v: %+v became %+v", typ, in.Elem(), out.Elem())
			}
			// Cut short anywhere it is refused, or it lacks whole trailing fields.
			for n := 1; n < len(p); n++ {
				if Unmarshal(p[:n], out.Interface()) == nil {
					t.Fatalf("%v: %d of %d bytes were accepted", typ, n, len(p))
				}
			}
			if Unmarshal(append(p, 0), out.Interface()) == nil {
				t.Fatalf("%v: bytes behind the message were accepted", typ)
			}
		}
	}
}

// The bytes on the wire are a promise to other versions.
func TestCodecGolden(t *testing.T) {
	m := MapReply{
		Chunks: []ChunkMap{{Index: 1, Chunk: 0x0102030405060708, Epoch: 9,
			Members: []dataplane.CSID{1, 2}}},
		Servers: []CSAddr{{CS: 3, Addr: "a:1", Live: true}},
	}
	const want = "39000000" + // bytes that follow
		"01000000" + "1c000000" + "01000000" + "0807060504030201" + "09000000" +
		"02000000" + "01000000" + "02000000" +
		"01000000" + "0d000000" + "03000000" + "03000000" + "613a31" + "01" + "00"
	if got := hex.EncodeToString(Marshal(m)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Messages of an older and a newer version.
type (
	oldInner struct{ A uint32 }
	newInner struct {
		A uint32
		B string
	}
	oldMessage struct {
		X     uint8
		Inner oldInner
		List  []oldInner
	}
	newMessage struct {
		X     uint8
		Inner newInner
		List  []newInner
		Y     []byte
		Z     bool
	}
)

func TestCodecVersions(t *testing.T) {
	n := newMessage{1, newInner{2, "b"}, []newInner{{3, "c"}, {4, "d"}}, []byte("y"), true}
	o := oldMessage{1, oldInner{2}, []oldInner{{3}, {4}}}
	var gotOld oldMessage
	if err := Unmarshal(Marshal(n), &gotOld); err != nil || !reflect.DeepEqual(gotOld, o) {
		t.Errorf("new to old: %v %+v", err, gotOld)
	}
	want := newMessage{1, newInner{A: 2}, []newInner{{A: 3}, {A: 4}}, nil, false}
	gotNew := newMessage{Y: []byte("old contents")}
	if err := Unmarshal(Marshal(o), &gotNew); err != nil || !reflect.DeepEqual(gotNew, want) {
		t.Errorf("old to new: %v %+v", err, gotNew)
	}
	if err := Unmarshal(nil, &gotNew); err != nil || !reflect.DeepEqual(gotNew, newMessage{}) {
		t.Errorf("no bytes: %v %+v", err, gotNew)
	}
}

func TestCodecBounds(t *testing.T) {
	for name, c := range map[string]struct {
		p  []byte
		to any
	}{
		"struct too long": {[]byte{9, 0, 0, 0, 1}, &FileReq{}},
		"string too long": {[]byte{12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255},
			&LookupReq{}},
		"huge slice":         {[]byte{4, 0, 0, 0, 255, 255, 255, 255}, &MapReply{}},
		"slice of 2, 1 fits": {[]byte{12, 0, 0, 0, 2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}, &ForgetPush{}},
		"half a field":       {[]byte{7, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7}, &FileReq{}},
		"bool of 2":          {[]byte{5, 0, 0, 0, 0, 0, 0, 0, 2}, &ReadDirReply{}},
	} {
		err := Unmarshal(c.p, c.to)
		if dataplane.KindOf(err) != dataplane.Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A large count must not be believed before the bytes for it are there.
	huge := []byte{4, 0, 0, 0, 255, 255, 255, 255}
	var m MapReply
	if n := testing.AllocsPerRun(10, func() { _ = Unmarshal(huge, &m) }); n > 10 {
		t.Errorf("%v allocations", n)
	}
}

func TestCodecRefusesTypes(t *testing.T) {
	type recursive struct{ L []recursive }
	for _, v := range []any{struct{ A int }{}, struct{ P *int }{}, struct{ M map[int]int }{},
		struct{ a uint8 }{}, struct{ F float64 }{}, recursive{}, struct{ A [3]uint16 }{}, 5} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%T was encoded", v)
				}
			}()
			Marshal(v)
		}()
	}
}

func TestOpsTable(t *testing.T) {
	seen := map[dataplane.Opcode]bool{}
	for _, r := range ops {
		if r.op < dataplane.OpControlBase || seen[r.op] || r.name == "" || r.req == nil {
			t.Errorf("row %+v", r)
		}
		seen[r.op] = true
	}
	if OpName(OpGetMap) != "get chunk map" || OpName(250) != "operation 250" {
		t.Error(OpName(OpGetMap), OpName(250))
	}
}

// FuzzUnmarshal: no input panics, and what was decoded once stays the same.
func FuzzUnmarshal(f *testing.F) {
	types := messageTypes()
	for i, typ := range types {
		v := reflect.New(typ)
		fill(rand.New(rand.NewPCG(uint64(i), 3)), v.Elem())
		f.Add(uint8(i), Marshal(v.Interface()))
	}
	f.Fuzz(func(t *testing.T, which uint8, p []byte) {
		typ := types[int(which)%len(types)]
		a, b := reflect.New(typ), reflect.New(typ)
		if Unmarshal(p, a.Interface()) != nil {
			return
		}
		q := Marshal(a.Interface())
		if err := Unmarshal(q, b.Interface()); err != nil {
			t.Fatalf("%v: %v", typ, err)
		}
		if !reflect.DeepEqual(a.Interface(), b.Interface()) ||
			!bytes.Equal(q, Marshal(b.Interface())) {
			t.Fatalf("%v isn't stable: %+v, %+v", typ, a.Elem(), b.Elem())
		}
	})
}

func benchMessage() MapReply {
	m := MapReply{}
	for i := range uint32(1024) {
		m.Chunks = append(m.Chunks, ChunkMap{i, dataplane.NewChunkID(1, uint64(i)), 1,
			[]dataplane.CSID{1, 2, 3}})
	}
	return m
}

func BenchmarkMarshalMap1024(b *testing.B) {
	m := benchMessage()
	b.ReportAllocs()
	for b.Loop() {
		Marshal(&m)
	}
}

func BenchmarkUnmarshalMap1024(b *testing.B) {
	p := Marshal(benchMessage())
	var m MapReply
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Unmarshal(p, &m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHeartbeat(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		var m HeartbeatReq
		if err := Unmarshal(Marshal(&HeartbeatReq{CS: 1}), &m); err != nil {
			b.Fatal(err)
		}
	}
}
