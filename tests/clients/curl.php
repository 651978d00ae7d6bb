<?php
// PHP with its curl extension: curl.php URL
$base = $argv[1];

function call(string $method, string $path, ?string $body = null): void
{
    global $base;
    $lines = [];
    $headers = getenv('AUTH') === false ? [] : ['Authorization: ' . getenv('AUTH')];
    $curl = curl_init($base . $path);
    curl_setopt_array($curl, [
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_FOLLOWLOCATION => true,
        CURLOPT_HEADERFUNCTION => function ($curl, $line) use (&$lines) {
            $lines[] = rtrim($line);
            return strlen($line);
        },
    ]);
    if ($method === 'HEAD') {
        curl_setopt($curl, CURLOPT_NOBODY, true);
    }
    if ($body !== null) {
        $headers[] = 'Content-Type: application/json';
        curl_setopt($curl, CURLOPT_POSTFIELDS, $body);
    }
    curl_setopt($curl, CURLOPT_HTTPHEADER, $headers);
    $answer = curl_exec($curl);
    if ($answer === false) {
        fwrite(STDERR, curl_error($curl) . "\n");
        exit(1);
    }
    echo "> $method $path\n", implode("\n", $lines), "\n", hash('sha256', $answer), "\n";
}

foreach (['/json?x=1&y=%2F', '/gzip', '/missing', '/moved', '/chunked', '/large'] as $path) {
    call('GET', $path);
}
call('HEAD', '/json');
call('POST', '/items', '{"name": "bolt"}');
