package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"sync"

	"pstorage/dataplane"
)

// The encoding is in the package comment. For each type a plan is made once, by reflection; a type
// that can't be encoded (pointers, maps, int, unexported fields, recursion) panics when it is first
// used, which a test does for all messages.

// Marshal encodes the struct v, or the struct it points to.
func Marshal(v any) []byte { return AppendMarshal(nil, v) }

// AppendMarshal appends the encoding of v to dst.
func AppendMarshal(dst []byte, v any) []byte {
	r := reflect.ValueOf(v)
	if r.Kind() == reflect.Pointer {
		r = r.Elem()
	}
	return structPlan(r.Type()).put(dst, r)
}

// Unmarshal decodes p into the struct that v points to. Fields missing in p become zero, unknown
// ones are skipped, no bytes at all are the zero value. Nothing of p is kept. The error has the
// kind Malformed; v is then in no particular state.
func Unmarshal(p []byte, v any) error {
	r := reflect.ValueOf(v).Elem()
	plan := structPlan(r.Type())
	r.SetZero()
	if len(p) == 0 {
		return nil
	}
	d := decoder{p: p}
	plan.get(&d, r)
	if d.err == nil && len(d.p) != 0 {
		d.fail("bytes behind the message")
	}
	if d.err != nil {
		return dataplane.E("decode "+r.Type().Name(), dataplane.Malformed, d.err)
	}
	return nil
}

// decoder is what is left to decode. After an error p is empty, so that every loop ends.
type decoder struct {
	p   []byte
	err error
}

func (d *decoder) fail(why string) {
	if d.err == nil {
		d.err = errors.New(why)
	}
	d.p = nil
}

// take returns the next n bytes, or nil and fails.
func (d *decoder) take(n int) []byte {
	if n > len(d.p) {
		d.fail(fmt.Sprintf("%d bytes wanted, %d left", n, len(d.p)))
		return nil
	}
	b := d.p[:n:n]
	d.p = d.p[n:]
	return b
}

// length reads a count of things of at least size bytes each, which must be there.
func (d *decoder) length(size int) int {
	b := d.take(4)
	if b == nil {
		return 0
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	if n*uint64(size) > uint64(len(d.p)) {
		d.fail(fmt.Sprintf("length %d, but %d bytes left", n, len(d.p)))
		return 0
	}
	return int(n)
}

// plan is how one type is encoded. least is the fewest bytes that a value takes.
type plan struct {
	least int
	put   func(dst []byte, v reflect.Value) []byte
	get   func(d *decoder, v reflect.Value) // v is zero before
}

var plans sync.Map // reflect.Type of a struct -> *plan

func structPlan(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("control: %v is not a message", t))
	}
	p, _ := plans.LoadOrStore(t, makePlan(t, nil))
	return p.(*plan)
}

// makePlan makes the plan of t, which is part of the types in outer.
func makePlan(t reflect.Type, outer []reflect.Type) *plan {
	for _, o := range outer {
		if o == t {
			panic(fmt.Sprintf("control: %v contains itself", t))
		}
	}
	outer = append(outer, t)
	switch t.Kind() {
	case reflect.Bool:
		return boolPlan
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return uintPlan(int(t.Size()))
	case reflect.Int64:
		return intPlan
	case reflect.String:
		return stringPlan
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return bytesPlan
		}
		return slicePlan(t, makePlan(t.Elem(), outer))
	case reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 && t.Len() > 0 {
			return arrayPlan(t.Len())
		}
	case reflect.Struct:
		return makeStructPlan(t, outer)
	}
	panic(fmt.Sprintf("control: %v can't be encoded", t))
}

var boolPlan = &plan{1,
	func(dst []byte, v reflect.Value) []byte {
		if v.Bool() {
			return append(dst, 1)
		}
		return append(dst, 0)
	},
	func(d *decoder, v reflect.Value) {
		switch b := d.take(1); {
		case b == nil:
		case b[0] > 1:
			d.fail("bool that is neither 0 nor 1")
		default:
			v.SetBool(b[0] == 1)
		}
	}}

// putUint appends the low size bytes of x.
func putUint(dst []byte, x uint64, size int) []byte {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], x)
	return append(dst, b[:size]...)
}

func getUint(d *decoder, size int) uint64 {
	var b [8]byte
	copy(b[:], d.take(size))
	return binary.LittleEndian.Uint64(b[:])
}

func uintPlan(size int) *plan {
	return &plan{size,
		func(dst []byte, v reflect.Value) []byte { return putUint(dst, v.Uint(), size) },
		func(d *decoder, v reflect.Value) { v.SetUint(getUint(d, size)) }}
}

var intPlan = &plan{8,
	func(dst []byte, v reflect.Value) []byte { return putUint(dst, uint64(v.Int()), 8) },
	func(d *decoder, v reflect.Value) { v.SetInt(int64(getUint(d, 8))) }}

var stringPlan = &plan{4,
	func(dst []byte, v reflect.Value) []byte {
		return append(putUint(dst, uint64(v.Len()), 4), v.String()...)
	},
	func(d *decoder, v reflect.Value) { v.SetString(string(d.take(d.length(1)))) }}

var bytesPlan = &plan{4,
	func(dst []byte, v reflect.Value) []byte {
		return append(putUint(dst, uint64(v.Len()), 4), v.Bytes()...)
	},
	func(d *decoder, v reflect.Value) {
		if n := d.length(1); n > 0 {
			v.SetBytes(append([]byte(nil), d.take(n)...))
		}
	}}

func arrayPlan(size int) *plan {
	return &plan{size,
		func(dst []byte, v reflect.Value) []byte {
			for i := range size {
				dst = append(dst, byte(v.Index(i).Uint()))
			}
			return dst
		},
		func(d *decoder, v reflect.Value) { reflect.Copy(v, reflect.ValueOf(d.take(size))) }}
}

func slicePlan(t reflect.Type, elem *plan) *plan {
	return &plan{4,
		func(dst []byte, v reflect.Value) []byte {
			n := v.Len()
			dst = putUint(dst, uint64(n), 4)
			for i := range n {
				dst = elem.put(dst, v.Index(i))
			}
			return dst
		},
		func(d *decoder, v reflect.Value) {
			n := d.length(elem.least)
			if n == 0 {
				return
			}
			v.Set(reflect.MakeSlice(t, n, n))
			for i := 0; i < n && d.err == nil; i++ {
				elem.get(d, v.Index(i))
			}
		}}
}

func makeStructPlan(t reflect.Type, outer []reflect.Type) *plan {
	fields := make([]*plan, t.NumField())
	for i := range fields {
		if !t.Field(i).IsExported() {
			panic(fmt.Sprintf("control: %v has the unexported field %s", t, t.Field(i).Name))
		}
		fields[i] = makePlan(t.Field(i).Type, outer)
	}
	return &plan{4,
		func(dst []byte, v reflect.Value) []byte {
			at := len(dst)
			dst = append(dst, 0, 0, 0, 0)
			for i, f := range fields {
				dst = f.put(dst, v.Field(i))
			}
			binary.LittleEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
			return dst
		},
		func(d *decoder, v reflect.Value) {
			inner := decoder{p: d.take(d.length(1))}
			// A field is missing only if nothing is left where it would begin: an older sender.
			for i := 0; i < len(fields) && len(inner.p) > 0; i++ {
				fields[i].get(&inner, v.Field(i))
			}
			if inner.err != nil {
				d.fail(inner.err.Error())
			}
		}}
}
