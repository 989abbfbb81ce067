//go:build race

package main

// raced: the race detector makes a seed take ten times as long, and a seed is one goroutine.
const raced = true
