package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"pstorage/dataplane"
)

// The stamp ties store, log and identity together, so that one of them that was replaced by an
// older copy of itself is found at the start, before anything is written. It lies at byte 8192 of
// the store and is written with each checkpoint, through the staging area. All integers are little
// endian:
//
//	offset size field
//	     0    8 magic "PSSTAMP1"
//	     8    4 version (1)
//	    12    4 zero
//	    16    8 number of the checkpoint; grows by 1
//	    24    8 batches of the log up to this one were durable
//	    32    8 start counter of the server that wrote it
//	    40  468 zero
//	   508    4 CRC32C of bytes 0-507
//
// The log's superblock has the number of the last checkpoint that was complete when it was written
// (ssdcache.Marker), the identity the number at the last start and the last orderly stop. So:
//
//	found                                   | what it means
//	----------------------------------------+------------------------------------------
//	log's mark above the store's number     | the store is older than its log
//	log ends before the stamp's batch       | the log is older than its store
//	identity's number above the store's     | store and log are older than the identity
//	stamp's start above the identity's      | the identity is older than the store
//
// Copies of all three that fit together are found by the metadata servers, by the start counter.
// Stores made before there were stamps have zeros there, which nothing is older than.
const (
	stampMagic   = "PSSTAMP1"
	stampVersion = 1
	stampSize    = 512
	stampOffset  = scrubOffset + scrubRecordArea
)

type stamp struct {
	nr    uint64
	batch uint64
	boot  uint64
}

func (s *stamp) put(b []byte) {
	le := binary.LittleEndian
	clear(b[:dataplane.BlockSize])
	copy(b, stampMagic)
	le.PutUint32(b[8:], stampVersion)
	le.PutUint64(b[16:], s.nr)
	le.PutUint64(b[24:], s.batch)
	le.PutUint64(b[32:], s.boot)
	le.PutUint32(b[stampSize-4:], dataplane.CRC(b[:stampSize-4]))
}

// decode reads a stamp; zeros are the zero stamp.
func (s *stamp) decode(b []byte) error {
	*s = stamp{}
	if len(b) < stampSize {
		return errors.New("the stamp of the store is cut short")
	}
	if isZero(b[:stampSize]) {
		return nil
	}
	le := binary.LittleEndian
	switch {
	case string(b[:8]) != stampMagic:
		return errors.New("the stamp of the store is damaged")
	case le.Uint32(b[stampSize-4:]) != dataplane.CRC(b[:stampSize-4]):
		return errors.New("the stamp of the store is damaged (checksum mismatch)")
	case le.Uint32(b[8:]) != stampVersion:
		return fmt.Errorf("the stamp of the store has version %d, this program knows %d",
			le.Uint32(b[8:]), stampVersion)
	}
	s.nr, s.batch, s.boot = le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:])
	return nil
}

const rolledBack = "an older copy was put back, or its disk lost writes that it had confirmed. " +
	"Nothing was changed. Put the right one back; if there is none, drop this chunk server " +
	"(pstorage rm-cs --force) and make a new one: the other copies of its chunks are complete"

// checkIdentity compares the stamp with the identity. id may be nil: nothing is known.
func (s *stamp) checkIdentity(id *Identity) error {
	switch {
	case id == nil:
		return nil
	case s.nr < id.Stamp:
		return fmt.Errorf("the store and its journal are older than the file \"identity\" "+
			"(checkpoint %d, there was %d): %s", s.nr, id.Stamp, rolledBack)
	case s.boot > id.Boot:
		return fmt.Errorf("the file \"identity\" is older than the store (start %d, there was %d): %s",
			id.Boot, s.boot, rolledBack)
	}
	return nil
}

// checkLog compares the stamp with what the log knows of the store, and where it ends.
func (s *stamp) checkLog(mark, last uint64) error {
	switch {
	case mark > s.nr:
		return dataplane.E("open the store", dataplane.Invalid, fmt.Errorf("it is older than its "+
			"journal (checkpoint %d, there was %d): %s", s.nr, mark, rolledBack))
	case last < s.batch:
		return dataplane.E("open the journal", dataplane.Invalid, fmt.Errorf("it is older than the "+
			"store (it ends with batch %d, there was %d): %s", last, s.batch, rolledBack))
	}
	return nil
}

// Mark implements ssdcache.Marker: the last checkpoint that is durable.
func (st *store) Mark() uint64 { return st.marked }

// nextStamp makes the stamp of the pass that begins.
func (st *store) nextStamp() {
	st.stamp.nr++
	if st.logDurable != nil {
		st.stamp.batch = max(st.stamp.batch, st.logDurable())
	}
	st.stamp.boot = max(st.stamp.boot, st.boot)
}

// SetBoot says which start of the server this is, for the stamp.
func (sh *Shard) SetBoot(boot uint64) { sh.store.boot = boot }

// Stamp is the number of the last checkpoint, for the identity.
func (sh *Shard) Stamp() uint64 { return sh.store.marked }
