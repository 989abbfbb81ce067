package session

import (
	"bufio"
	"encoding/binary"
	"io"
	"slices"
)

// sealStream encrypts what is written, in the records of seal.go.
type sealStream struct {
	d   *direction
	buf []byte
}

// streamRecords is how many bytes of data are encrypted before they are written.
const streamRecords = 4 * maxRecord

// write writes p to out. A record ends after the first cut bytes.
func (s *sealStream) write(out io.Writer, p []byte, cut int) (n int, err error) {
	s.buf = s.buf[:0]
	for n < len(p) {
		k := min(len(p)-n, maxRecord)
		if n < cut {
			k = min(k, cut-n)
		}
		s.add(p[n : n+k])
		if n += k; n == len(p) || len(s.buf) >= streamRecords {
			if _, err := out.Write(s.buf); err != nil {
				return 0, err
			}
			s.buf = s.buf[:0]
		}
	}
	if cap(s.buf) > readBuffer {
		s.buf = nil
	}
	return n, nil
}

// add seals a record to the end of buf.
func (s *sealStream) add(p []byte) {
	at := len(s.buf)
	s.buf = slices.Grow(s.buf, recordHead+len(p)+gcmTag)[:at+recordHead+len(p)+gcmTag]
	s.d.seal(s.buf[at:], p)
}

// openStream decrypts the records of a stream, each as a whole and where it lies. What the
// connection says, such as that a deadline passed, can be got over; a bad record can't.
type openStream struct {
	d     *direction
	in    *bufio.Reader // has room for a record
	plain []byte        // in the first record of in: decrypted and not yet read
	size  int           // of that record; 0: it isn't decrypted
	err   error         // of a bad record
}

func newOpenStream(d *direction, in io.Reader) *openStream {
	return &openStream{d: d, in: bufio.NewReaderSize(in, recordHead+maxRecord+gcmTag)}
}

// Read implements io.Reader.
func (s *openStream) Read(p []byte) (int, error) {
	for len(s.plain) == 0 && len(p) > 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

// next drops the record that was read and decrypts the one behind it.
func (s *openStream) next() error {
	if s.err != nil {
		return s.err
	}
	s.in.Discard(s.size) // it is there
	s.size = 0
	head, err := s.in.Peek(recordHead)
	if err != nil {
		return midRecord(err, len(head))
	}
	if _, s.err = cutRecord(head, 1, maxRecord); s.err != nil {
		return s.err
	}
	size := recordHead + int(binary.LittleEndian.Uint32(head)) + gcmTag
	rec, err := s.in.Peek(size)
	if err != nil {
		return midRecord(err, len(rec))
	}
	s.size = size
	s.plain, s.err = s.d.open(rec[recordHead:recordHead], rec)
	return s.err
}

func midRecord(err error, have int) error {
	if err == io.EOF && have > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}
