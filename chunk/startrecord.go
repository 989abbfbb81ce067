package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"pstorage/dataplane"
	"pstorage/uring"
)

// An old copy of the store or of the log that is put back looks intact: its checksums match its
// blocks. So the number of the start (Identity.Boot) goes round before anything is served:
//
//	Identity.Boot = b       durable before the disks are opened
//	startRecord.begun = b   in the store, durable before the log
//	stamp of the log = b    durable before
//	startRecord.served = b  in the store, durable before
//	Identity.Served = b     durable before anybody can connect
//
// So in any life, with starts that ended anywhere: Boot-1 >= begun >= stamp >= served >= Served.
// An old copy of one or two of the three, from before the last start that served, breaks this. A
// copy of all three is found by the metadata servers, who know Boot. What isn't found is a copy
// taken since the last start.
//
// The record lies behind the scrub record, at byte 8192 of the store: one sector, so it is old or
// new after a power cut. All integers are little endian:
//
//	offset size field
//	     0    8 magic "PSSTART1"
//	     8    8 begun
//	    16    8 served
//	    24  484 reserved, zero
//	   508    4 CRC32C of bytes 0-507
const (
	startMagic      = "PSSTART1"
	startRecordSize = 512
	startOffset     = scrubOffset + scrubRecordArea
)

// startRecord is the decoded record; the zero value: no start was counted yet.
type startRecord struct {
	begun, served uint64
}

func (s *startRecord) put(b []byte) {
	le := binary.LittleEndian
	clear(b[:startRecordSize])
	copy(b, startMagic)
	le.PutUint64(b[8:], s.begun)
	le.PutUint64(b[16:], s.served)
	le.PutUint32(b[508:], dataplane.CRC(b[:508]))
}

var errStartRecord = errors.New("the store's record of its last start is damaged")

// decode takes a record. One of zeros is of a store that was never started.
func (s *startRecord) decode(b []byte) error {
	*s = startRecord{}
	if len(b) < startRecordSize {
		return errStartRecord
	}
	if b = b[:startRecordSize]; isZero(b) {
		return nil
	}
	le := binary.LittleEndian
	if string(b[:8]) != startMagic || le.Uint32(b[508:]) != dataplane.CRC(b[:508]) {
		return errStartRecord
	}
	s.begun, s.served = le.Uint64(b[8:]), le.Uint64(b[16:])
	if s.begun < s.served {
		return errStartRecord
	}
	return nil
}

// checkIdentity compares the record with the identity: boot is the number of this start.
func (s *startRecord) checkIdentity(boot, served uint64) error {
	switch {
	case s.begun >= boot:
		return fmt.Errorf("this is start %d by the identity, the store has seen start %d: an old copy "+
			"of the identity was put here", boot, s.begun)
	case s.served < served:
		return fmt.Errorf("by the identity start %d served, the store last served in start %d: an old "+
			"copy of the store was put here, writes since then are missing", served, s.served)
	}
	return nil
}

// checkLog compares the record with the log's stamp.
func (s *startRecord) checkLog(stamp uint64) error {
	switch {
	case stamp > s.begun:
		return fmt.Errorf("the log has seen start %d, the store only start %d: an old copy of the store "+
			"was put here, writes since then are missing", stamp, s.begun)
	case stamp < s.served:
		return fmt.Errorf("the store served in start %d, the log has only seen start %d: an old copy of "+
			"the log was put here, writes since then are missing", s.served, stamp)
	}
	return nil
}

// writeStart makes the record durable.
func (o *opener) writeStart(then func(error)) {
	b := o.buf.Bytes()[:dataplane.BlockSize]
	clear(b)
	o.life.put(b)
	op := &uring.DiskOp{Kind: uring.DiskWriteSync, Offset: startOffset, Bufs: [][]byte{b}}
	op.Done = func(op *uring.DiskOp) {
		if op.Err != nil {
			then(dataplane.E("count this start in the store", dataplane.IOError, op.Err))
			return
		}
		then(nil)
	}
	o.sh.store.disk.Submit(op)
}

// acceptLog is asked whether this is the log that the store was left with.
func (o *opener) acceptLog(stamp uint64, next func(error)) {
	if err := o.life.checkLog(stamp); err != nil {
		err = dataplane.E("open the log", dataplane.Invalid, err)
		o.sh.later(func() { next(err) })
		return
	}
	o.life.begun = o.o.Boot
	o.writeStart(next)
}

// markServed keeps that from now on this start may serve.
func (o *opener) markServed() {
	if o.o.Boot == 0 {
		o.finish()
		return
	}
	o.life.served = o.o.Boot
	o.writeStart(func(err error) {
		if err != nil {
			o.fail(err)
			return
		}
		o.finish()
	})
}
