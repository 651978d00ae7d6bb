# Ruby Net::HTTP: net_http.rb URL
require 'digest'
require 'net/http'

base = ARGV[0]

call = lambda do |method, path, body = nil|
  url = URI(base + path)
  request = Net::HTTP.const_get(method.capitalize).new(url)
  request['Authorization'] = ENV['AUTH'] if ENV['AUTH']
  if body
    request['Content-Type'] = 'application/json'
    request.body = body
  end
  response = Net::HTTP.start(url.hostname, url.port, use_ssl: url.scheme == 'https') { |http| http.request(request) }
  puts "> #{method} #{path}", "#{response.code} #{response.message}"
  response.each_capitalized { |name, _| response.get_fields(name).each { |value| puts "#{name}: #{value}" } }
  puts Digest::SHA256.hexdigest(response.body || '')
end

['/json?x=1&y=%2F', '/gzip', '/missing', '/moved', '/chunked', '/large'].each { |path| call.('GET', path) }
call.('HEAD', '/json')
call.('POST', '/items', '{"name": "bolt"}')
