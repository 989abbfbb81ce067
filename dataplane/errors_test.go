package dataplane

import (
	"errors"
	"fmt"
	"testing"
)

func TestReason(t *testing.T) {
	cause := errors.New("it is older than the store")
	for _, c := range []struct {
		err  error
		want string
	}{
		{cause, "it is older than the store"},
		{E("open the journal", Invalid, cause), "open the journal: it is older than the store"},
		{E("serve /cs1", Invalid, fmt.Errorf("%w. Mend it", E("open", Invalid, cause))),
			"serve /cs1: open: it is older than the store. Mend it"},
		{E("read", BadCRC, nil), "read: " + BadCRC.String()},
		{fmt.Errorf("a: %w", E("read", BadCRC, nil)), "a: read: " + BadCRC.String()},
	} {
		if got := Reason(c.err); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
