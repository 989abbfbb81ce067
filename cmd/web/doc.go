// Package web is the page that a metadata server shows to people: health and space of the cluster,
// disks, recovery, latencies of the last minutes, events. It only shows; nothing can be changed
// with it. It has no assets from elsewhere, and is served on loopback, or elsewhere with a token.
//
// Any metadata server can serve it: the state comes from the leader, whom it asks as the command
// line does. A Poller asks every few seconds, whoever looks, and keeps what charts need.
package web
