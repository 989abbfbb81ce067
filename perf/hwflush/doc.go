// Package hwflush checks whether a disk keeps through a power cut what it acknowledged. A client
// writes numbered records to the disk, one after the other, each made durable by the kernel's
// means; every record the disk acknowledged is reported to a server, on a machine that keeps its
// power. After the cut the client asks the server for the last number and compares what is on the
// disk.
//
// Records go round in a fixed area: number n lies in slot n mod slots (record.go has the bytes).
// The client never is more than window numbers ahead of what the server has confirmed. So if the
// server's last number is L, the numbers from L+1 to L+window may or may not have been written, and
// the slots of those hold anything; in the other slots - numbers L+window-slots+1 to L - exactly
// these numbers must be found. One that is missing was acknowledged and lost.
//
// The protocol (message.go) is not authenticated: it says nothing that matters to anybody else. A
// server's memory is bounded by maxConns and maxNames.
package hwflush
