package control

import (
	"context"
	"encoding/json"
	"fmt"
)

// Admin does an administrative command (AdminStat and so on) and decodes its answer into doc,
// unless that is nil. args may be nil.
func (c *Client) Admin(ctx context.Context, command string, args, doc any) error {
	encoded, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("arguments of %s: %w", command, err)
	}
	var reply AdminReply
	err = c.Call(ctx, OpAdmin, &AdminReq{Command: command, Args: encoded}, &reply)
	if err != nil || doc == nil {
		return err
	}
	if err := json.Unmarshal(reply.Doc, doc); err != nil {
		return &AnswerError{command, err}
	}
	return nil
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
