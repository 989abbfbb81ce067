package control

import (
	"context"
	"encoding/json"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// How nodes get new keys. Each process with a Client asks for the keys behind the version it has
// (OpKeys); the leader answers when there are such, or after some time. So a change reaches all of
// them at once, and the leader knows who has which version. A node whose certificate is of another
// generation than the current one has a new key pair certified (OpRenewKey). Both only over
// encrypted connections.
const (
	OpKeys      = dataplane.OpControlBase + 72 // KeysReq -> KeysReply
	OpRenewKey  = dataplane.OpControlBase + 73 // RenewKeyReq -> RenewKeyReply
	OpGrantNode = dataplane.OpControlBase + 74 // GrantNodeReq -> KeysReply (metadata servers)
)

// KeysReq asks for keys newer than Version.
type KeysReq struct {
	Version    uint64
	Generation uint32 // of the certificate that this process proves itself with; 0: none
	WaitMs     uint32 // how long to wait for newer ones, at most MaxKeysWait
}

// MaxKeysWait bounds KeysReq.WaitMs.
const MaxKeysWait = 10 * time.Second

// KeysReply has a session.KeySet as JSON, without a node's own part except after OpGrantNode;
// empty: there are no newer ones.
type KeysReply struct{ Keys []byte }

// RenewKeyReq asks for a certificate of the current generation.
type RenewKeyReq struct{ Public [32]byte }

// RenewKeyReply has it.
type RenewKeyReply struct{ Cert []byte }

// GrantNodeReq asks for a new node, whose user has proved the password.
type GrantNodeReq struct {
	Public [32]byte
	Roles  uint8
	Host   string
}

// The commands of AdminReq about keys.
const (
	AdminRotateKeys = "rotate-keys" // RotateKeysArgs -> KeysDoc
	AdminListKeys   = "list-keys"   // none -> KeysDoc
	AdminRevokeNode = "revoke-node" // RevokeNodeArgs -> KeysDoc
	AdminAdoptCS    = "adopt-cs"    // AdoptCSArgs -> AdoptCSDoc
)

// The steps of a rotation, and its phases in KeysDoc.
const (
	RotateStart  = "start"  // make a generation and tell everybody to accept it, too
	RotateSwitch = "switch" // everybody proves itself with it from now on
	RotateFinish = "finish" // nobody accepts another one
)

// RotateKeysArgs names the step; it must be the next one. Switch and finish are refused while a
// connected process isn't ready for them, unless Force is set.
type RotateKeysArgs struct {
	Step  string `json:"step"`
	Force bool   `json:"force,omitempty"`
}

// RevokeNodeArgs names a node by its id or, if that is unambiguous, by its host's name.
type RevokeNodeArgs struct {
	Node string `json:"node"`
}

// KeysDoc is about the cluster's keys.
type KeysDoc struct {
	Mode       string   `json:"mode"`       // "crc", "secure"
	Generation uint32   `json:"generation"` // current; 0: nodes have no certificates
	Accepted   []uint32 `json:"accepted"`
	// Next is the step of the rotation that is under way; "start": none is.
	Next string `json:"next"`
	// Behind are connected processes that aren't ready for that step, for people.
	Behind []string  `json:"behind"`
	Nodes  []NodeDoc `json:"nodes"`
}

// AdoptCSArgs gives chunk servers, whose disks were moved, to another node: they belong to the one
// whose key they registered with first.
type AdoptCSArgs struct {
	CS   []uint32 `json:"cs"`
	Node string   `json:"node,omitempty"` // its id; empty: the node that asks
}

// AdoptCSDoc says whose they are now.
type AdoptCSDoc struct {
	CS []AdoptedDoc `json:"cs"`
}

// AdoptedDoc is a chunk server with the node that it belongs to, and the one before.
type AdoptedDoc struct {
	CS         uint32 `json:"cs"`
	Node       string `json:"node"`
	Host       string `json:"host"`
	Before     string `json:"before,omitempty"` // empty: it belonged to none
	BeforeHost string `json:"before_host,omitempty"`
}

// NodeDoc is a node that was given a key.
type NodeDoc struct {
	ID        string   `json:"id"`
	Host      string   `json:"host"`
	Roles     []string `json:"roles"`
	TimeNs    int64    `json:"time_ns"` // when it was given its first key
	Revoked   bool     `json:"revoked,omitempty"`
	Connected int      `json:"connected"` // processes
}

const (
	keysRetry   = time.Second
	keysRefused = time.Minute // before a server of an older version is asked again
)

// keepKeys keeps the ring of the credentials up to date until the client is closed.
func (c *Client) keepKeys() {
	ring := c.o.Cred.Ring
	var told time.Time // that the file lacks something
	for c.ctx.Err() == nil {
		pause := keysRetry
		err := c.askKeys(ring)
		if err != nil && ring.Unsaved() && time.Since(told) > keysRefused {
			told = time.Now()
			c.o.Log.Warn("the cluster's new keys aren't in this node's file; if they stay out of it, "+
				"the node can't connect any more after its next start", "err", err)
		}
		switch dataplane.KindOf(err) {
		case dataplane.OK:
			continue
		case dataplane.NotSupported:
			pause = keysRefused
		}
		if c.ctx.Err() == nil {
			c.o.Log.Debug("keys of the cluster", "err", err)
			if err := ring.Reload(); err != nil {
				c.o.Log.Warn("read this node's keys again", "err", err)
			}
		}
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
		}
	}
}

// askKeys waits for newer keys and takes them over.
func (c *Client) askKeys(ring *session.Ring) error {
	ctx, cancel := context.WithTimeout(c.ctx, 2*MaxKeysWait)
	defer cancel()
	have := ring.Load()
	req := &KeysReq{Version: have.Version, WaitMs: uint32(MaxKeysWait / time.Millisecond)}
	if cert := have.Certificate(); cert != nil {
		req.Generation = cert.Generation
	}
	if have.Outdated() {
		req.WaitMs = 0
	}
	var reply KeysReply
	if err := c.Call(ctx, OpKeys, req, &reply); err != nil {
		return err
	}
	keys := have
	if len(reply.Keys) > 0 {
		keys = &session.KeySet{}
		err := json.Unmarshal(reply.Keys, keys)
		if err == nil {
			err = keys.Check(c.o.Cred.Cluster)
		}
		if err != nil {
			return dataplane.E("read the cluster's keys", dataplane.Malformed, err)
		}
	}
	if keys == have && !have.Outdated() && !ring.Unsaved() {
		return nil
	}
	err := ring.Update(keys, func(public [32]byte) ([]byte, error) {
		var cert RenewKeyReply
		err := c.Call(ctx, OpRenewKey, &RenewKeyReq{Public: public}, &cert)
		return cert.Cert, err
	})
	if err == nil {
		c.o.Log.Info("this process has the cluster's newest keys", "version", keys.Version,
			"generation", keys.Current)
	}
	return err
}
