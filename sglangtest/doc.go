// Package sglangtest runs experiments on SGLang serving.
//
// An experiment is described by a config ([NodeConfig]), which is a plain struct and a JSON file alike, and is
// carried out by one call ([RunNode]). That call is a short composition of the packages below it, which can
// be used on their own: load makes and sends requests, server owns servers, sim simulates them, metrics measures,
// results stores.
package sglangtest
