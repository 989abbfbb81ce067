// Package cluster keeps what a node knows about the clusters it belongs to: the files under
// /etc/pstorage. The environment variable PSTORAGE_ETC replaces /etc/pstorage, so that tests and
// several clusters fit on one machine.
//
//	/etc/pstorage/clusters/NAME/
//	    auth.key   0600  the node's key for this cluster
//	    bs.list    0644  where the metadata servers are, one "ip[:port]" per line
//	    mds.list   0644  the metadata servers of this node, one per line
//	    cs.list    0644  the chunk servers of this node, one per line
//	    discovery  0644  optional: how metadata servers are looked for, see package discover;
//	                     without it /etc/pstorage/discovery counts
//
// A cluster's name is 1 to 63 characters of [A-Za-z0-9_-], not beginning with "-".
//
// In the lists "#" begins a comment and empty lines are skipped. A line of mds.list or cs.list is
// the daemon's directory (absolute, without white space), then optional key=value pairs:
//
//	/pstorage/test_cluster-cs addr=10.30.100.17:2520
//
// auth.key is text, so that it can be carried by hand, with a version in its first line and a
// checksum of everything above it in its last:
//
//	pstorage-key 2
//	cluster 1b4f0e9851971998e732078544c96b36
//	name test_cluster
//	keys a session.KeySet as JSON, in one line
//	crc32c 8 hexadecimal digits
//
// Version 1, of clusters whose nodes have no certificates, has in place of keys:
//
//	key 64 hexadecimal digits
//
// A reader refuses an unknown version, a missing, unknown or repeated field, and a key file that
// others than its owner can read.
//
// All files are replaced atomically (new file, fsync, rename, fsync of the directory); changes of
// a list are serialized by a lock on the cluster's directory, choices between what the node's
// clusters share by one on the directory "clusters".
package cluster
