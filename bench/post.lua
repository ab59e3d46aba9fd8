-- For wrk: the method, the body and its type come after `--` on its command line.
function init(args)
  wrk.method = args[1]
  if args[2] then
    wrk.body = args[2]
    wrk.headers["Content-Type"] = args[3]
  end
end
