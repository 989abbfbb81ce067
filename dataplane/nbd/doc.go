// Package nbd serves files of a cluster as network block devices, for virtual machines and for
// everything else that speaks NBD: qemu, qemu-img, nbdcopy, fio, the kernel's nbd driver.
//
// It speaks the fixed newstyle handshake (EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED_REPLY,
// LIST_META_CONTEXT, SET_META_CONTEXT with base:allocation) and READ, WRITE, FLUSH, TRIM,
// WRITE_ZEROES, CACHE, BLOCK_STATUS, RESIZE and DISC, with FUA, NO_HOLE, DF and FAST_ZERO. Many
// connections to one export are one device (CAN_MULTI_CONN): a write that was answered is seen by
// all, and a FLUSH on one covers what was answered on any.
//
// All connections live on the loop of the client library: a request is taken out of the socket's
// window, becomes one client.Op whose buffer the payload was received into, and is answered out of
// that buffer; no goroutine and no allocation per request. The exceptions are BLOCK_STATUS and
// RESIZE, which ask the metadata servers, and requests above 1 MiB, whose buffers are made for
// them.
//
// One client of the cluster at a time may write a file. A connection to an export that may be
// written counts as an open for writing, until it has gone and its requests have ended; but only
// the first write asks for the right to write, because readers don't say that they are. So a
// virtual machine that moves writes through the export of its new host as soon as its old one has
// disconnected. When the right was taken away (pstorage revoke), writes of the connections of
// before fail with ESHUTDOWN; those of a new one ask again.
//
// What waits in the cluster waits here: there are no errors for a full cluster or a chunk below its
// minimum of copies. What is under way for a client that goes away without DISC is called off, so
// that no write of it is done after newer ones over its next connection. A connection may have
// maxRequests requests and maxBytes of payload under way; beyond that its socket isn't read. All
// connections of a server together, maxConns at most, leave half of the client's buffers to the
// client, and one that doesn't choose an export within handshakeTime is closed. Of the other half
// each may hold as much as is free then. A client that is stopped, or cut off, keeps what it has
// while nobody needs it; when others wait for memory it is closed, after stuckTime. Over TCP the
// kernel closes one that has taken nothing of its replies for two minutes in any case. One that has
// said good-bye, or was refused in the handshake, may take nothing for lingerTime.
//
// NBD knows no authentication but TLS, which this doesn't have: listen on a unix socket or on
// loopback, or guard the port by other means.
package nbd
