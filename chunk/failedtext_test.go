package chunk

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// A failed disk's message says what failed and what to do about it.
func TestFailedText(t *testing.T) {
	for errno, says := range map[syscall.Errno]string{syscall.EIO: "rm-cs",
		syscall.ENOSPC: "make room on its file system", syscall.EROFS: "read-only after an error"} {
		err := fmt.Errorf("write /cs1/store at 4096: %w", errno)
		text := failedText(err)
		if !strings.HasPrefix(text, err.Error()) || !strings.Contains(text, says) {
			t.Errorf("%v: %s", errno, text)
		}
		if strings.Contains(text, "rm-cs") == (errno == syscall.ENOSPC) {
			t.Errorf("%v: whether it must be replaced: %s", errno, text)
		}
	}
}
