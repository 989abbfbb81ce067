package main

import (
	"fmt"

	"pstorage/cmd/cli"
)

// crcMemory is the size of --crc-memory; 0: chunk servers choose by their capacity.
type crcMemory struct{ cli.Size }

// Below the least a chunk server is busy with its checksums only; the most is for 16 TiB.
const (
	leastCRCMemory = 1 << 20
	mostCRCMemory  = 16 << 30
)

// Set parses text. It is of pflag.Value.
func (m *crcMemory) Set(text string) error {
	var s cli.Size
	if err := s.Set(text); err != nil {
		return err
	}
	if s < leastCRCMemory || s > mostCRCMemory {
		return fmt.Errorf("%q: from 1M to 16G", text)
	}
	m.Size = s
	return nil
}
