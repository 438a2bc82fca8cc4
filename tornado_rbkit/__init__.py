"""A live rbkit profiler on a WebSocket: Tornado handlers with threaded ZMQ."""
