<?php
// PHP with its own streams, which know no proxy: streams.php URL
$base = $argv[1];

function call(string $method, string $path, ?string $body = null): void
{
    global $base;
    $headers = getenv('AUTH') === false ? [] : ['Authorization: ' . getenv('AUTH')];
    if ($body !== null) {
        $headers[] = 'Content-Type: application/json';
    }
    $options = ['method' => $method, 'header' => $headers, 'content' => $body, 'ignore_errors' => true];
    $answer = file_get_contents($base . $path, false, stream_context_create(['http' => $options]));
    if ($answer === false) {
        exit(1);
    }
    echo "> $method $path\n", implode("\n", $http_response_header), "\n", hash('sha256', $answer), "\n";
}

foreach (['/json?x=1&y=%2F', '/gzip', '/missing', '/moved', '/chunked', '/large'] as $path) {
    call('GET', $path);
}
call('HEAD', '/json');
call('POST', '/items', '{"name": "bolt"}');
