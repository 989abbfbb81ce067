package chunk

import "testing"

// The memory for checksums grows with the disk, and leaves the server within 300 MB per TiB.
func TestCRCBudget(t *testing.T) {
	const mib, tib = 1 << 20, 1 << 40
	for _, c := range []struct {
		capacity uint64
		asked    int
		want     int
	}{
		{64 << 20, 0, mib}, // one chunk
		{32 << 30, 0, 32 * mib},
		{64 << 30, 0, 64 * mib},
		{tib, 0, 128 * mib},
		{4 * tib, 0, 320 * mib},
		{16*tib - 64<<20, 0, 1088*mib - 4096},
		{tib, 300 * mib, 300 * mib},
		{tib, 2 << 30, 1 << 30}, // all there is
		{tib, 1, mib},
	} {
		got := crcBudget(c.capacity, c.asked)
		if got != c.want {
			t.Errorf("%d GiB, %d asked for: %d bytes", c.capacity>>30, c.asked, got)
		}
		if tibs := float64(c.capacity) / tib; c.asked == 0 && tibs >= 1 &&
			110e6+1.1*float64(got) > 300e6*tibs {
			t.Errorf("%d GiB: %d bytes are too much", c.capacity>>30, got)
		}
	}
}
