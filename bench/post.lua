-- For wrk: every request of a case is a POST without a body.
wrk.method = "POST"
