package control

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"pstorage/dataplane"
)

// TestAdmin: arguments go there and the document comes back; one that can't be read, and a refusal,
// are told apart.
func TestAdmin(t *testing.T) {
	s := serve(t, "127.0.0.1:0", func(_ context.Context, r request) (any, error) {
		var req AdminReq
		if err := Unmarshal(r.p, &req); err != nil {
			return nil, err
		}
		switch req.Command {
		case AdminGetAttr:
			var args PathArgs
			if err := json.Unmarshal(req.Args, &args); err != nil {
				return nil, err
			}
			doc, err := json.Marshal(AttrDoc{Path: args.Path, Type: "file"})
			return AdminReply{Doc: doc}, err
		case AdminListServices:
			reply := &AdminReply{}
			var err error
			doc := ServicesDoc{}
			for i := range uint32(10_000) {
				doc.CS = append(doc.CS, CSDoc{ID: i, Host: "host", Stats: &CSStats{}})
			}
			if reply.Doc, err = json.Marshal(doc); req.Packs {
				reply.Pack()
			}
			return reply, err
		case AdminStat:
			return AdminReply{Doc: []byte("nonsense")}, nil
		case AdminListKeys:
			return AdminReply{Doc: []byte("nonsense"), Packed: true}, nil
		}
		return nil, dataplane.E("do it", dataplane.Denied, nil)
	})
	c := client(t, Options{Addrs: FixedAddrs(s.addr)})
	ctx := within(t, 10*time.Second)
	var attr AttrDoc
	err := c.Admin(ctx, AdminGetAttr, PathArgs{Path: "/a"}, &attr)
	if err != nil || attr.Path != "/a" || attr.Type != "file" {
		t.Errorf("%+v, %v", attr, err)
	}
	var long ServicesDoc
	err = c.Admin(ctx, AdminListServices, nil, &long)
	if err != nil || len(long.CS) != 10_000 || long.CS[9_999].ID != 9_999 {
		t.Errorf("a long document: %d servers, %v", len(long.CS), err)
	}
	var unread *AnswerError
	err = c.Admin(ctx, AdminListKeys, nil, new(KeysDoc))
	if !errors.As(err, &unread) {
		t.Errorf("a packed answer that can't be read: %v", err)
	}
	err = c.Admin(ctx, AdminStat, nil, new(StatDoc))
	if !errors.As(err, &unread) || unread.Command != AdminStat {
		t.Errorf("an answer that can't be read: %v", err)
	}
	if err := c.Admin(ctx, AdminStat, nil, nil); err != nil {
		t.Errorf("an answer that nobody reads: %v", err)
	}
	err = c.Admin(ctx, AdminRmCS, nil, nil)
	if dataplane.KindOf(err) != dataplane.Denied || errors.As(err, &unread) {
		t.Errorf("a refusal: %v", err)
	}
}
