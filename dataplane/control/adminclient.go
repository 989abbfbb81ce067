package control

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Admin does an administrative command (AdminStat and so on) and decodes its answer into doc,
// unless that is nil. args may be nil.
func (c *Client) Admin(ctx context.Context, command string, args, doc any) error {
	encoded, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("arguments of %s: %w", command, err)
	}
	var reply AdminReply
	err = c.Call(ctx, OpAdmin, &AdminReq{Command: command, Args: encoded, Packs: true}, &reply)
	if err != nil || doc == nil {
		return err
	}
	b, err := reply.unpack()
	if err == nil {
		err = json.Unmarshal(b, doc)
	}
	if err != nil {
		return &AnswerError{command, err}
	}
	return nil
}

const (
	packAbove = 64 << 10  // bytes of a document that is sent as it is, to be read in a trace
	maxDoc    = 256 << 20 // bytes of one that was compressed
)

// Pack compresses a long document. Those that list servers become ten times as short.
func (r *AdminReply) Pack() {
	if len(r.Doc) <= packAbove {
		return
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err == nil {
		_, err = w.Write(r.Doc)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil { // else it is sent as it is
		r.Doc, r.Packed = b.Bytes(), true
	}
}

func (r *AdminReply) unpack() ([]byte, error) {
	if !r.Packed {
		return r.Doc, nil
	}
	b, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(r.Doc)), maxDoc+1))
	if err == nil && len(b) > maxDoc {
		err = errors.New("it is too long")
	}
	return b, err
}

// AnswerError is an answer to an administrative command that can't be read: the server is of
// another version, perhaps.
type AnswerError struct {
	Command string
	Err     error
}

// Error implements error.
func (e *AnswerError) Error() string {
	return fmt.Sprintf("the metadata server's answer to %s can't be read: %v", e.Command, e.Err)
}

// Unwrap returns what is wrong with it.
func (e *AnswerError) Unwrap() error { return e.Err }
