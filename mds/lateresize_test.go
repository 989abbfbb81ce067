package mds

import (
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestLateTruncation: a client that was cut off while it truncated a file comes back when another
// one has taken the file over, and perhaps given it back. Its request, repeated by itself, cuts
// nothing off. Nor does a late Grow put zeros behind what the other one has written.
func TestLateTruncation(t *testing.T) {
	w := newLeaseWorld(t)
	size := func(client, token, size uint64) error {
		return w.try(client, dataplane.RoleClient, control.OpSetAttr, &control.SetAttrReq{
			File: w.file, Mask: control.SetSize, Size: size, Token: token}, nil)
	}
	mine := w.acquire(7, 0)
	if err := size(7, mine.Token, 5000); err != nil {
		t.Fatalf("by the writer: %v", err)
	}
	w.now += int64(dataplane.FileLeaseTime + time.Second)
	other := w.acquire(8, 0)
	for !other.Granted {
		w.now += int64(time.Second)
		other = w.acquire(8, other.Token)
	}
	refused := func(when string) {
		if err := size(7, mine.Token, 0); dataplane.KindOf(err) != dataplane.Fenced {
			t.Errorf("%s: %v", when, err)
		}
		err := w.try(7, dataplane.RoleClient, control.OpGrow, &control.GrowReq{File: w.file,
			Size: 9000, Token: mine.Token}, nil)
		if dataplane.KindOf(err) != dataplane.Fenced {
			t.Errorf("%s, Grow: %v", when, err)
		}
		var a control.Attr
		w.ask(8, dataplane.RoleClient, control.OpGetAttr, &control.FileReq{File: w.file}, &a)
		if a.Size != 5000 {
			t.Errorf("%s: the file has %d bytes left", when, a.Size)
		}
	}
	refused("while another client writes")
	w.release(8, other.Token, false)
	refused("when another client has written")
	if err := size(7, 0, 4000); err != nil {
		t.Errorf("by a client that doesn't say under which lease: %v", err)
	}
}
