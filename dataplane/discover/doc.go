// Package discover finds the metadata servers of a cluster, in three ways:
//
//	dns   SRV records of the name _pstorage._tcp.CLUSTER, in the node's search domains
//	mdns  multicast DNS (RFC 6762, 6763) on the networks that the node is on, IPv4
//	list  bs.list in the cluster's configuration
//
// in this order, unless the file "discovery" in the cluster's configuration, or else in the node's
// (/etc/pstorage/discovery), names others, in one line, such as "list" or "dns list". What is found
// is a hint and nothing more: whoever answers at such an address must prove with the cluster's keys
// who it is before anything else is said. So answers are bounded and checked for form, and
// addresses that can't be a server's are left out.
package discover
