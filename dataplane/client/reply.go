package client

import (
	"encoding/binary"
	"fmt"

	"pstorage/dataplane"
)

// This file is what is done with an answer.

// answer acts on the answer h to p, which is in no list any more.
func (e *Engine) answer(p *part, pr *peer, h *dataplane.Header, crcs, payload []byte) {
	if h.Status != dataplane.OK {
		if h.Status == dataplane.NoLease || h.Status == dataplane.IOError {
			// It answers, and yet nothing can be written as long as it is a member, nor read if the
			// chunk has to be settled: if that lasts the metadata servers have to exclude it.
			pr.refuses = true
			pr.report(p.chunk, p.epoch)
		}
		e.refused(p, h.Status)
		return
	}
	p.file.proved(p)
	if p.code != dataplane.OpRead {
		var err error
		switch now := (written{p.chunk, uint16(h.Aux)}); {
		case p.code == dataplane.OpFlush:
			err = p.file.wasFlushed(p.index, now)
		case (p.file.ackMemory || now.life != 0) && !p.op.FUA:
			p.file.wrotePart(p.op, p.index, now)
		default:
			p.acknowledged(pr, h)
		}
		e.partDone(p, err)
		return
	}
	if bad := e.copyRead(p, crcs, payload); bad >= 0 {
		e.stats.BadCRCs++
		if e.mayLog(quietCRC) {
			e.log.Warn("data doesn't match its checksum, reading it from another member",
				"cs", pr.id, "addr", pr.addr, "file", p.file.id, "chunk", p.chunk.String(),
				"offset", int(p.off)&^(dataplane.BlockSize-1)+bad*dataplane.BlockSize)
		}
		e.refused(p, dataplane.BadCRC)
		return
	}
	e.partDone(p, nil)
}

// copyRead verifies the data of an answer and copies it to the op's memory, block by block, so that
// each is touched once while it is in the cache. It returns the number of the first bad block in
// the part, or -1.
func (e *Engine) copyRead(p *part, crcs, payload []byte) int {
	if len(crcs) != 4*dataplane.Blocks(p.off, p.n) || len(payload) != int(p.n) {
		panic(fmt.Sprintf("client: %d bytes of CRCs, %d of data for %d at %d", len(crcs),
			len(payload), p.n, p.off))
	}
	dst := p.payload()
	off := p.off
	for i := 0; len(payload) > 0; i++ {
		k := min(dataplane.BlockSize-int(off%dataplane.BlockSize), len(payload))
		if binary.LittleEndian.Uint32(crcs[4*i:]) != dataplane.CRC(payload[:k]) {
			return i
		}
		copy(dst, payload[:k])
		dst, payload, off = dst[k:], payload[k:], off+uint32(k)
	}
	return -1
}

// fits says whether h is an answer that p can have got.
func (p *part) fits(h *dataplane.Header) bool {
	if h.Op != p.code || h.Chunk != p.chunk {
		return false
	}
	if p.code == dataplane.OpRead && h.Status == dataplane.OK {
		return h.Flags&dataplane.FlagData != 0 && h.Offset == p.off && h.Length == p.n
	}
	return h.Flags&dataplane.FlagData == 0 || h.Status != dataplane.OK
}
